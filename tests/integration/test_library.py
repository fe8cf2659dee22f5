"""The package as a library: what a program gets that opens a workspace itself."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import iris_kv
from iris_kv import Principal, Settings, Workspace, load_settings, open_workspace
from iris_kv.errors import InvalidArgumentError, NotFoundError

ME = Principal(author="agent", face="library")
FAST = Settings(durability="fast")
SEEDED = {"document_creation", "presentation", "research", "web_development"}


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


async def wait_for_entries(workspace: Workspace, scope: str, n: int) -> set[str]:
    """Return the keys of a scope once it has at least so many."""
    store = await workspace.store()
    with anyio.fail_after(30):
        while True:
            position = (await store.changes(None)).next
            keys = {info.key for info in (await workspace.list(scope, limit=1_000)).entries}
            if len(keys) >= n:
                return keys
            await store.wait_for_change(position)


def write_many(folder: Path, n: int) -> Path:
    folder.mkdir()
    for number in range(n):
        name = f"task-{number:03}"
        (folder / f"{name}.md").write_text(f"---\nname: {name}\ndescription: Does {number}. Use it.\n---\n# {number}\n")
    return folder


# Entries


async def test_what_was_put_is_there_when_the_workspace_is_opened_again(tmp_path: Path) -> None:
    async with open_workspace(tmp_path) as workspace:
        stored = await workspace.put(ME, "project", "k", b"\x00value", metadata={"kind": "x"})

    async with open_workspace(tmp_path) as workspace:
        entry = await workspace.get("project", "k")
        listed = await workspace.list("project")

    assert (entry.value, entry.info, listed.entries) == (b"\x00value", stored, (stored,))
    assert (stored.provenance.author, stored.provenance.face) == ("agent", "library")


async def test_two_that_are_open_on_one_folder_see_each_other(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, settings=FAST) as one, open_workspace(tmp_path, settings=FAST) as other:
        await one.put(ME, "project", "k", b"one")
        assert (await other.get("project", "k")).value == b"one"

        await other.put(ME, "project", "k", b"other")
        assert (await one.get("project", "k")).value == b"other"

        await one.delete(ME, "project", "k")
        with pytest.raises(NotFoundError):
            await other.get("project", "k")


async def test_a_change_in_one_wakes_who_waits_in_the_other(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, settings=FAST) as one, open_workspace(tmp_path, settings=FAST) as other:
        await wait_for_entries(one, "system", 2)
        store = await other.store()
        position = (await store.changes(None)).next

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.wait_for_change, position)
                await one.put(ME, "project", "k", b"v")

        assert [(event.scope, event.key) for event in (await store.changes(position)).events] == [("project", "k")]


# Seeding in the background


async def test_instructions_and_prompts_are_seeded_in_the_background(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, settings=FAST) as workspace:
        assert await wait_for_entries(workspace, "instructions", 4) == SEEDED
        assert await wait_for_entries(workspace, "system", 2) == {"prompt/compact", "prompt/full"}
        provenance = (await workspace.get("system", "prompt/full")).info.provenance

    assert (provenance.author, provenance.face) == ("canonical", "seeder")


async def test_closing_at_once_is_clean(tmp_path: Path) -> None:
    for _ in range(5):
        async with open_workspace(tmp_path, settings=FAST):
            pass

    async with open_workspace(tmp_path, settings=FAST) as workspace:
        assert await wait_for_entries(workspace, "instructions", 4) == SEEDED


async def test_closing_in_the_middle_of_seeding_leaves_a_sound_cache_that_the_next_one_completes(
    tmp_path: Path,
) -> None:
    folder = write_many(tmp_path / "many", 300)
    settings = Settings.model_validate({"durability": "fast", "instructions": {"folders": [folder]}})
    async with open_workspace(tmp_path, settings=settings) as workspace:
        await wait_for_entries(workspace, "instructions", 1)

    async with open_workspace(tmp_path, settings=FAST, create=False) as looking:
        report = await looking.verify()
    async with open_workspace(tmp_path, settings=settings) as workspace:
        keys = await wait_for_entries(workspace, "instructions", 304)

    assert (report.damaged, report.usage_matches) == ((), True)
    assert 0 < report.entries < 304
    assert keys == SEEDED | {f"task_{number:03}" for number in range(300)}


async def test_an_error_in_the_body_comes_out_as_itself_and_closes_the_workspace(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        async with open_workspace(tmp_path, settings=FAST) as workspace:
            await workspace.get("artifacts", "none")

    async with open_workspace(tmp_path, settings=FAST) as workspace:
        assert (await workspace.list("artifacts")).entries == ()


# Prompts and settings


async def test_the_variant_set_while_running_is_that_of_the_next_prompt(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {"prompt.compact": False, "durability": "fast"})
    async with open_workspace(tmp_path, settings=settings) as workspace:
        before = await workspace.prompt()
        workspace.prompts.compact = True
        after = await workspace.prompt()
        asked = await workspace.prompt("full")

    assert (before.variant, before.shown) == ("full", "flag in argument")
    assert (after.variant, after.shown) == ("compact", "phase_on in prompts/rollout.toml")
    assert (asked.text, asked.shown) == (before.text, "argument")
    assert len(after.text) < len(before.text) / 3


async def test_a_workspace_reads_its_own_configuration_unless_settings_are_given(tmp_path: Path) -> None:
    (tmp_path / ".iris").mkdir()
    (tmp_path / ".iris" / "config.toml").write_text("[prompt]\ncompact = false\n")

    async with open_workspace(tmp_path, create=False) as own, open_workspace(tmp_path, settings=FAST) as given:
        assert (own.prompts.compact, given.prompts.compact) == (False, True)


async def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="which is not a folder"):
        async with open_workspace(tmp_path / "none"):
            pass


async def test_without_create_nothing_is_written(tmp_path: Path) -> None:
    async with open_workspace(tmp_path, create=False) as workspace:
        with pytest.raises(NotFoundError, match="no cache yet"):
            await workspace.list("project")

    assert os.listdir(tmp_path) == []


# The names


def test_every_public_name_is_there_documented_and_used_by_the_typed_program() -> None:
    program = ast.parse((Path(__file__).parents[1] / "typing" / "api.py").read_text())
    used = {node.id for node in ast.walk(program) if isinstance(node, ast.Name)}

    assert 12 <= len(iris_kv.__all__) <= 24
    assert set(iris_kv.__all__) <= used
    documented = [name for name in iris_kv.__all__ if name not in ("SCOPES", "Scope")]
    assert all(inspect.getdoc(getattr(iris_kv, name)) for name in documented)
    public = [getattr(iris_kv, name) for name in documented]
    for owner in (each for each in public if inspect.isclass(each) and each.__module__.startswith("iris_kv")):
        methods = inspect.getmembers(owner, inspect.isfunction)
        ours = [(name, one) for name, one in methods if not name.startswith("_") and one.__module__ == owner.__module__]
        assert all(inspect.getdoc(one) for _, one in ours), owner


def test_importing_the_package_does_not_load_the_sdk_or_the_command_line() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import iris_kv, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert not {"mcp", "starlette", "typer", "click", "rich", "markdown_it", "openai"} & set(loaded.stdout.split())
