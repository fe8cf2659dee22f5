"""Which folder is the workspace: what is named wins, what is near comes next, and nothing is found by accident."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from iris_kv.errors import InvalidArgumentError
from iris_kv.location import Location, find_workspace

NEAREST_IRIS = "the nearest .iris folder upwards"
NEAREST_VCS = "the nearest version control root upwards"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def folder(*parts: str | Path) -> Path:
    made = Path(*parts)
    made.mkdir(parents=True, exist_ok=True)
    return made


def git(at: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *arguments], cwd=at, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = folder(tmp_path, "repository")
    git(made, "init", "--quiet")
    git(made, "commit", "--quiet", "--allow-empty", "-m", "first")
    return made


# Named


def test_the_argument_wins_over_the_variable_and_both_over_what_is_near(tmp_path: Path) -> None:
    near, named, other = folder(tmp_path, "near"), folder(tmp_path, "named"), folder(tmp_path, "other")
    folder(near, ".iris")
    environment = {"IRIS_KV_WORKSPACE": str(other)}

    assert find_workspace(str(named), environment, near) == Location(root=named, reason="--workspace")
    assert find_workspace(None, environment, near) == Location(root=other, reason="IRIS_KV_WORKSPACE")
    assert find_workspace(None, {"IRIS_KV_WORKSPACE": ""}, near) == Location(root=near, reason=NEAREST_IRIS)


def test_a_relative_name_starts_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "work", "inner")
    monkeypatch.chdir(tmp_path / "work")

    assert find_workspace("inner/../.", {}, Path.cwd()).root == tmp_path / "work"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    folder(home, "work")

    assert find_workspace("~/work", {}, home).root == home / "work"


def test_a_link_is_kept_as_it_was_named(tmp_path: Path) -> None:
    folder(tmp_path, "real")
    (tmp_path / "link").symlink_to("real")

    assert find_workspace(str(tmp_path / "link"), {}, tmp_path).root == tmp_path / "link"


def test_spaces_and_other_scripts_are_names_like_any_other(tmp_path: Path) -> None:
    named = folder(tmp_path, "моя папка 🦉 with 'quotes'")

    assert find_workspace(str(named), {}, tmp_path).root == named


def test_home_and_root_can_be_named(home: Path) -> None:
    assert find_workspace(str(home), {}, home).root == home
    assert find_workspace("/", {}, home).root == Path("/")


@pytest.mark.parametrize(
    "name",
    ["none", "${workspaceFolder}", "", "~nobody-of-this-name/x", "x" * 5_000, "file", "file/inner"],
    ids=["missing", "unexpanded", "empty", "unknown user", "too long", "file", "below a file"],
)
def test_what_was_named_and_is_no_folder_is_refused_and_nothing_else_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder(tmp_path, ".iris")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InvalidArgumentError) as error:
        find_workspace(name, {}, tmp_path)

    assert error.value.wrong == f"--workspace is {name!r}, which is not a folder"


def test_an_unexpanded_variable_of_a_client_is_told_as_the_variable(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        find_workspace(None, {"IRIS_KV_WORKSPACE": "${workspaceFolder}"}, tmp_path)

    assert error.value.wrong == "IRIS_KV_WORKSPACE is '${workspaceFolder}', which is not a folder"
    assert error.value.allowed == "it is the path of an existing folder, with every variable filled in"


# Found


def test_the_nearest_iris_folder_is_found_upwards(tmp_path: Path) -> None:
    folder(tmp_path, ".iris")
    outer, inner = folder(tmp_path, "outer"), folder(tmp_path, "outer", "inner", "deep")
    folder(outer, ".iris")

    assert find_workspace(None, {}, inner) == Location(root=outer, reason=NEAREST_IRIS)


def test_an_iris_folder_further_up_wins_over_a_nearer_repository(tmp_path: Path) -> None:
    folder(tmp_path, ".iris")
    inner = folder(tmp_path, "inner")
    folder(inner, ".git")

    assert find_workspace(None, {}, inner) == Location(root=tmp_path, reason=NEAREST_IRIS)


def test_a_file_called_iris_is_no_workspace(tmp_path: Path) -> None:
    folder(tmp_path, ".git")
    inner = folder(tmp_path, "inner")
    (inner / ".iris").touch()

    assert find_workspace(None, {}, inner) == Location(root=tmp_path, reason=NEAREST_VCS)


@pytest.mark.parametrize("name", [".git", ".hg", ".jj", ".svn"])
def test_the_nearest_version_control_root_is_found_upwards(tmp_path: Path, name: str) -> None:
    folder(tmp_path, "work", name)
    inner = folder(tmp_path, "work", "a", "b")

    assert find_workspace(None, {}, inner) == Location(root=tmp_path / "work", reason=NEAREST_VCS)


def test_the_root_of_a_worktree_is_found_by_its_git_file(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "tree"))
    inner = folder(tmp_path, "tree", "inner")

    assert (tmp_path / "tree" / ".git").is_file()
    assert find_workspace(None, {}, inner) == Location(root=tmp_path / "tree", reason=NEAREST_VCS)


def test_the_root_of_a_submodule_is_found_by_its_git_file(repository: Path, tmp_path: Path) -> None:
    outer = folder(tmp_path, "outer")
    git(outer, "init", "--quiet")
    git(outer, "submodule", "--quiet", "add", str(repository), "module")

    assert (outer / "module" / ".git").is_file()
    assert find_workspace(None, {}, outer / "module") == Location(root=outer / "module", reason=NEAREST_VCS)


@pytest.mark.parametrize("marker", [".iris", ".git"])
def test_the_home_folder_is_never_found_upwards(home: Path, marker: str) -> None:
    folder(home, marker)
    inner = folder(home, "downloads")

    for at in (home, inner):
        with pytest.raises(InvalidArgumentError, match="none is found upwards"):
            find_workspace(None, {}, at)


def test_the_home_folder_is_not_found_through_a_link_either(home: Path, tmp_path: Path) -> None:
    folder(home, ".iris")
    (tmp_path / "link").symlink_to(home)

    with pytest.raises(InvalidArgumentError, match="none is found upwards"):
        find_workspace(None, {}, tmp_path / "link")


def test_a_folder_below_home_is_found(home: Path) -> None:
    work = folder(home, "work")
    folder(work, ".git")

    assert find_workspace(None, {}, work).root == work


def test_the_root_folder_is_never_found_upwards() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        find_workspace(None, {}, Path("/"))

    assert error.value.todo == "name it with --workspace FOLDER, or set IRIS_KV_WORKSPACE in the client's configuration"


def test_a_current_folder_that_was_deleted_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, work = folder(tmp_path, "gone"), folder(tmp_path, "work")
    monkeypatch.chdir(gone)
    gone.rmdir()

    for name in (None, "."):
        with pytest.raises(InvalidArgumentError, match="the current folder was deleted"):
            find_workspace(name, {})
    assert find_workspace(str(work), {}).root == work
    monkeypatch.chdir(work)


def test_without_a_home_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    folder(tmp_path, ".iris")

    assert find_workspace(None, {}, tmp_path).root == tmp_path
