"""The check of instruction files: what it measures, what it refuses, and the rule that a change has a new version."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from iris_kv.instruction_check import CheckedInstruction, CheckReport, SectionTokens, check
from iris_kv.instructions import InstructionSource, LibraryError
from iris_kv.settings import shipped
from iris_kv.tokens import TokenCounter

COUNTER = TokenCounter()


def text_of(name: str, *, body: str = "Do it.\n", version: str | None = "1.0.0") -> str:
    metadata = "" if version is None else f'metadata:\n  version: "{version}"\n'
    return f"---\nname: {name}\ndescription: Does it. Use for it.\n{metadata}---\n{body}"


def write(folder: Path, file: str, text: str) -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def source(folder: Path, origin: Literal["shipped", "folder", "workspace"] = "folder") -> InstructionSource:
    return InstructionSource(folder=folder, origin=origin, label=folder.name)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def committed(folder: Path, *options: str) -> Path:
    """Return a repository with what is in the folder committed."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "--quiet", *options)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "all")
    return folder


def problems_of(folder: Path) -> list[tuple[str, str]]:
    report = check([source(folder)], COUNTER)
    assert report.ok is (report.problems == ())
    return [(error.file, error.problem) for error in report.problems]


UNCHANGED_VERSION = "content changed since HEAD, version is still 1.0.0; raise metadata.version"


def test_the_report_gives_tokens_by_section_largest_first_and_warnings(tmp_path: Path) -> None:
    body = "# A\n\n## B\n\nb\n\n# C\n\n" + "many words " * 20 + "\n"
    write(tmp_path, "a.md", text_of("task-a", body=body, version=None))

    report = check([source(tmp_path)], COUNTER)

    sections = [("c", body[body.index("# C") :]), ("a", body[: body.index("# C")]), ("b", "## B\n\nb\n\n")]
    assert report == CheckReport(
        ok=True,
        exact=COUNTER.exact,
        instructions=(
            CheckedInstruction(
                tag="task_a",
                file=f"{tmp_path.name}/a.md",
                tokens=COUNTER.count(body),
                sections=tuple(SectionTokens(slug=slug, tokens=COUNTER.count(part)) for slug, part in sections),
                warnings=('there is no version; add metadata with version: "1.0.0"',),
            ),
        ),
        problems=(),
    )


def test_the_shipped_instructions_are_within_their_limits() -> None:
    report = check([source(shipped("instructions"), "shipped")], COUNTER)

    assert [error for error in report.problems if "since HEAD" not in error.problem] == []
    assert [found.warnings for found in report.instructions] == [()] * len(report.instructions)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("x\n" * 501, "the body has 501 lines; at most 500 are read well; move a part to a file of its own"),
        ("a b c d " * 1_000, "the body has 4,00"),
    ],
)
def test_limits_are_errors_for_strict_sources_and_warnings_for_others(tmp_path: Path, body: str, problem: str) -> None:
    write(tmp_path, "a.md", text_of("a", body=body))
    loose, ships = source(tmp_path), source(tmp_path, "shipped")

    lenient, marked, ship = check([loose], COUNTER), check([loose], COUNTER, strict=[loose]), check([ships], COUNTER)

    assert lenient.ok is True
    assert [warning[: len(problem)] for found in lenient.instructions for warning in found.warnings] == [problem]
    for report in (marked, ship):
        assert report.ok is False
        assert [error.problem[: len(problem)] for error in report.problems] == [problem]
        assert [found.warnings for found in report.instructions] == [()]


def test_broken_files_duplicates_and_missing_folders_are_problems(tmp_path: Path) -> None:
    write(tmp_path / "one", "a.md", text_of("a"))
    write(tmp_path / "one", "b.md", text_of("a"))
    write(tmp_path / "one", "c.md", "no front matter")

    report = check([source(tmp_path / "one"), source(tmp_path / "two")], COUNTER)

    assert report.ok is False
    assert [(error.file, error.problem.split(";")[0]) for error in report.problems] == [
        ("one/b.md", "its tag 'a' is that of one/a.md"),
        ("one/c.md", "has no front matter"),
        ("two", "does not exist"),
    ]


def test_one_tag_in_two_sources_is_no_problem_as_one_overrides_the_other(tmp_path: Path) -> None:
    write(tmp_path / "one", "a.md", text_of("a"))
    write(tmp_path / "two", "a.md", text_of("a"))

    report = check([source(tmp_path / "one"), source(tmp_path / "two")], COUNTER)

    assert (report.ok, [found.file for found in report.instructions]) == (True, ["one/a.md", "two/a.md"])


# A change has a new version


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("file", ["a.md", "a/SKILL.md"])
def test_a_change_without_a_new_version_is_a_problem(tmp_path: Path, object_format: str, file: str) -> None:
    folder = tmp_path / "repository" / "instructions"
    path = write(folder, file, text_of("a"))
    committed(tmp_path / "repository", f"--object-format={object_format}")
    assert problems_of(folder) == []

    path.write_text(text_of("a", body="Do it twice.\n"))
    assert problems_of(folder) == [(f"instructions/{file}", UNCHANGED_VERSION)]

    path.write_text(text_of("a", body="Do it twice.\n", version="1.0.1"))
    assert problems_of(folder) == []


def test_a_staged_change_and_a_change_of_newlines_alone_count_too(tmp_path: Path) -> None:
    staged = write(tmp_path, "a.md", text_of("a"))
    newlines = write(tmp_path, "b.md", text_of("b"))
    committed(tmp_path)

    staged.write_text(text_of("a", body="Other.\n"))
    git(tmp_path, "add", ".")
    newlines.write_bytes(text_of("b").replace("\n", "\r\n").encode())

    assert problems_of(tmp_path) == [(f"{tmp_path.name}/{file}", UNCHANGED_VERSION) for file in ("a.md", "b.md")]


def test_a_change_without_any_version_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a", version=None))
    committed(tmp_path)

    path.write_text(text_of("a", body="Other.\n", version=None))

    problem = "content changed since HEAD, there is still no version; add metadata.version"
    assert problems_of(tmp_path) == [(f"{tmp_path.name}/a.md", problem)]


def test_an_untracked_and_a_deleted_file_are_no_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a"))
    committed(tmp_path)
    path.unlink()
    write(tmp_path, "b.md", text_of("b"))

    assert problems_of(tmp_path) == []


def test_a_file_that_was_broken_at_head_needs_no_new_version(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a", body=""))
    committed(tmp_path)

    path.write_text(text_of("a"))

    assert problems_of(tmp_path) == []


def test_without_a_repository_or_a_commit_there_is_no_such_check(tmp_path: Path) -> None:
    write(tmp_path, "a.md", text_of("a"))
    assert problems_of(tmp_path) == []

    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    assert problems_of(tmp_path) == []


def test_without_git_there_is_no_such_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.md", text_of("a"))
    committed(tmp_path)
    path.write_text(text_of("a", body="Other.\n"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    assert problems_of(tmp_path) == []


def test_the_check_is_about_the_folders_repository_also_within_anothers_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "mine", "a.md", text_of("a"))
    committed(tmp_path / "mine")
    path.write_text(text_of("a", body="Other.\n"))
    other = committed(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))

    assert problems_of(tmp_path / "mine") == [("mine/a.md", UNCHANGED_VERSION)]


# A repository that comes from someone else


def trap(tmp_path: Path) -> tuple[Path, Path]:
    """Return a program, and the file that it leaves when it is run."""
    mark = tmp_path / "was-run"
    program = tmp_path / "trap.sh"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o700)
    return program, mark


def test_the_check_runs_nothing_that_a_repository_names(tmp_path: Path) -> None:
    program, mark = trap(tmp_path)
    folder = tmp_path / "repository"
    path = write(folder, "a.md", text_of("a"))
    write(folder, ".gitattributes", "*.md diff=trap filter=trap\n")
    committed(folder)
    for setting in ("core.fsmonitor", "diff.trap.textconv", "diff.trap.command", "filter.trap.smudge", "core.pager"):
        git(folder, "config", setting, str(program))
    (folder / ".git" / "hooks").mkdir(exist_ok=True)
    for hook in ("post-index-change", "reference-transaction", "post-checkout"):
        (folder / ".git" / "hooks" / hook).symlink_to(program)
    path.write_text(text_of("a", body="Other.\n"))

    problems = problems_of(folder)

    assert problems == [("repository/a.md", UNCHANGED_VERSION)]
    assert not mark.exists()


def test_a_partial_clone_is_not_completed_by_a_command_of_its_own(tmp_path: Path) -> None:
    program, mark = trap(tmp_path)
    folder = tmp_path / "repository"
    path = write(folder, "a.md", text_of("a"))
    committed(folder)
    blob = git(folder, "rev-parse", "HEAD:a.md")
    for setting, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{program}",
        "protocol.ext.allow": "always",
    }.items():
        git(folder, "config", setting, value)
    path.write_text(text_of("a", body="Other.\n"))
    (folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()

    problems = problems_of(folder)

    assert problems == []
    assert not mark.exists()


def test_a_bare_repository_planted_in_a_folder_is_not_taken_for_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "instructions"
    write(folder, "a.md", text_of("a"))
    committed(folder)
    for planted in (folder / ".git").iterdir():
        planted.rename(folder / planted.name)
    (folder / ".git").rmdir()
    git(tmp_path, "--git-dir", str(folder), "config", "core.bare", "true")
    write(folder, "a.md", text_of("a", body="Other.\n"))

    assert problems_of(folder) == []


def test_a_blob_that_is_too_large_or_a_tree_that_cannot_be_read_is_no_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a", body="x" * 1_000_000))
    committed(tmp_path)
    path.write_text(text_of("a"))

    assert problems_of(tmp_path) == []

    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/none\n")
    assert problems_of(tmp_path) == []


def test_a_link_among_the_files_is_compared_as_what_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path, "a/SKILL.md", text_of("a"))
    (tmp_path / "link.md").symlink_to("a/SKILL.md")
    committed(tmp_path)

    assert problems_of(tmp_path) == [
        (
            f"{tmp_path.name}/link.md",
            f"its tag 'a' is that of {tmp_path.name}/a/SKILL.md; a source has a tag once; rename one",
        )
    ]


def test_the_report_is_data_that_json_can_carry(tmp_path: Path) -> None:
    write(tmp_path, os.fsdecode(b"b\xff.md"), "no front matter")
    report = check([source(tmp_path)], COUNTER)

    assert CheckReport.model_validate_json(report.model_dump_json()) == report
    assert isinstance(report.problems[0], LibraryError)
