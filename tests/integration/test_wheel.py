"""The wheel, built and installed into an environment of its own: it holds all that it needs, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

SERVED = {".py", ".typed", ".html", ".css", ".js"}
REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    ours = ("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env = {**kept, "HOME": str(cwd)}
    ended = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an environment with the wheel, which sees the dependencies but not this checkout."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    # What a .pth file names is no site folder itself, so the editable install beside the dependencies stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=environment)
    return environment


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names} == {"iris_kv", "iris_kv-0.1.0.dist-info"}
    assert not [name for name in names if "__pycache__" in name or "test" in name]


def test_the_wheel_holds_every_module_and_what_they_serve(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "server" / "iris_kv"
    files = [path for path in package.rglob("*") if path.suffix in SERVED]
    modules = {f"iris_kv/{path.relative_to(package)}" for path in files}
    served = {
        f"iris_kv/bundled/{path.relative_to(REPOSITORY)}"
        for folder in ("instructions", "prompts")
        for path in (REPOSITORY / folder).iterdir()
    }

    assert len(served) >= 5
    assert modules | served == {name for name in names if not name.startswith("iris_kv-")}
    assert "iris_kv-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_installed_package_serves_its_own_files_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import iris_kv.settings as s; print(s.__file__, s.shipped('instructions'), s.shipped('prompts'), sep='\\n')"

    places = run(installed / "bin" / "python", "-c", code, cwd=tmp_path).splitlines()

    assert all(Path(place).is_relative_to(installed) for place in places), places


def test_the_installed_command_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "iris-kv"

    assert run(command, "--version", cwd=tmp_path) == "iris-kv 0.1.0\n"
    listed = run(command, "instructions", "list", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in listed] == ["document_creation", "presentation", "research", "web_development"]
    assert run(command, "prompt", cwd=tmp_path).startswith("## Identity")
    snippet = run(command, "config", "--client", "zed", "--workspace", str(tmp_path), cwd=tmp_path)
    assert f'"command": "{command}"' in snippet
