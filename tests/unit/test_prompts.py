"""The system prompt: one source, two renderings, and the tables of tags that are cut to what fits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_kv.errors import InvalidArgumentError, UnavailableError
from iris_kv.instructions import InstructionLibrary, InstructionSource
from iris_kv.model import digest_of
from iris_kv.prompts import SERVER_CHARS, PromptSelector
from iris_kv.rollout import LiveRollout
from iris_kv.settings import PromptSettings, Settings, shipped
from iris_kv.tokens import TokenCounter

MARKER = "<!-- iris:instructions -->"
COUNTER = TokenCounter()
SOURCE = f"# You\n\n \t{MARKER} \r\n\r\nÜber all\r\n"


def write(
    folder: Path, name: str, *, description: str = "Does it. Use for it.", essentials: str = "", body: str = "Do it."
) -> None:
    metadata = f"metadata:\n  essentials: {essentials}\n" if essentials else ""
    (folder / f"{name}.md").write_text(f"---\nname: {name}\ndescription: {description}\n{metadata}---\n{body}\n")


Select = Callable[..., PromptSelector]


@pytest.fixture
def select(tmp_path: Path) -> Select:
    def selector(source: str = SOURCE, *, compact: bool = True) -> PromptSelector:
        (tmp_path / "system.md").write_bytes(source.encode())
        library = InstructionLibrary([InstructionSource(folder=tmp_path / "i", origin="folder", label="i")])
        rollout = LiveRollout(Settings(prompt=PromptSettings(compact=compact)), [])
        return PromptSelector(tmp_path / "system.md", library, rollout)

    (tmp_path / "i").mkdir()
    return selector


def test_all_bytes_around_the_marker_stand_in_both_renderings(select: Select, tmp_path: Path) -> None:
    write(tmp_path / "i", "a-b", essentials="Never guess.", body="\n# A\n\nDo it.\n\n")
    prompts = select()

    compact, full = prompts.render("compact"), prompts.render("full")

    for text in (compact, full):
        assert text.startswith("# You\n\n## Instructions\n\n")
        assert text.endswith(" \r\n\r\nÜber all\r\n")
        assert MARKER not in text
    assert "\n- a_b: Does it. Use for it. Always: Never guess. \r\n" in compact
    assert "Do it." not in compact
    assert "\n\n# A\n\nDo it. \r\n" in full


def test_the_choice_says_why(select: Select) -> None:
    prompts = select(compact=False)
    by_flag = prompts.select()
    prompts.compact = True
    by_hand, by_argument = prompts.select(), prompts.select("full")

    assert [(each.variant, each.shown) for each in (by_flag, by_hand, by_argument)] == [
        ("full", "flag in the settings"),
        ("compact", "phase_on in the defaults"),
        ("full", "argument"),
    ]
    assert by_argument == prompts.select("full")
    assert by_argument.digest == digest_of(by_argument.text.encode())


def test_an_unknown_variant_is_refused(select: Select) -> None:
    with pytest.raises(InvalidArgumentError, match="unknown prompt variant 'short'; compact or full"):
        select().select("short")


@pytest.mark.parametrize(
    "source", ["# No marker\n", f"text {MARKER}\n", "<!-- iris:instructions max_tokens=many -->\n"]
)
def test_a_source_without_a_marker_line_is_refused(select: Select, source: str) -> None:
    prompts = select(source)

    with pytest.raises(UnavailableError, match=r"the prompt source .system\.md. has no marker line"):
        prompts.render("full")
    assert "has no marker line" in prompts.errors[0]


@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_source_that_is_no_regular_file_is_told_and_nobody_waits_for_it(
    select: Select, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    prompts = select()
    before = prompts.render("full")
    (tmp_path / "system.md").unlink()
    plant(tmp_path / "system.md")

    assert not prompts.refresh()
    assert "'system.md' " in prompts.errors[0]
    assert prompts.render("full") == before


def test_only_the_last_marker_line_is_replaced(select: Select, tmp_path: Path) -> None:
    write(tmp_path / "i", "a-b")

    text = select(f"Write {MARKER}\n{MARKER}\n\n{MARKER}\nEnd\n").render("compact")

    assert text.startswith(f"Write {MARKER}\n{MARKER}\n\n## Instructions\n")
    assert text.endswith("- a_b: Does it. Use for it.\nEnd\n")


def test_a_marker_line_may_say_how_many_tokens_the_table_takes(select: Select, tmp_path: Path) -> None:
    for n in range(60):
        write(tmp_path / "i", f"task-{n:02}")
    few, many = (
        sum(line.startswith("- task_") for line in select(source).render("compact").splitlines())
        for source in (f"{MARKER}\n", "<!-- iris:instructions max_tokens=2000 -->\n")
    )

    assert few < many == 60


def test_without_instructions_there_is_no_table(select: Select) -> None:
    assert select("A\n\n" + MARKER + "\nB\n").render("compact") == "A\n\n\nB\n"
    assert select("A\n\n" + MARKER + "\nB\n").render("full") == "A\n\n\nB\n"


def test_a_broken_edit_keeps_the_last_good_source_until_it_is_mended(select: Select, tmp_path: Path) -> None:
    write(tmp_path / "i", "a-b")
    prompts = select()
    before = prompts.render("compact")

    (tmp_path / "system.md").write_bytes(b"\xff\n" + MARKER.encode())
    broke = prompts.refresh(), prompts.render("compact")
    (problem,) = prompts.errors
    (tmp_path / "system.md").write_text(f"Mended\n{MARKER}\n")
    mended = prompts.refresh(), prompts.errors, prompts.render("compact")

    assert broke == (False, before)
    assert "is not UTF-8" in problem
    assert mended[:2] == (True, ())
    assert mended[2].startswith("Mended\n## Instructions")


def test_a_deleted_source_keeps_serving(select: Select, tmp_path: Path) -> None:
    prompts = select()
    before = prompts.render("full")
    (tmp_path / "system.md").unlink()

    assert not prompts.refresh()
    assert "cannot be read (No such file or directory)" in prompts.errors[0]
    assert prompts.render("full") == before


def test_each_line_has_its_rules_as_far_as_there_is_room(select: Select, tmp_path: Path) -> None:
    for n in range(16):
        write(tmp_path / "i", f"task-{n:02}", essentials="Check each figure twice and name its source with the date.")
    lines = [line for line in select().render("compact").splitlines() if line.startswith("- task_")]

    assert len(lines) == 16
    assert all("Does it. Use for it." in line for line in lines)
    with_rules = [" Always: " in line for line in lines]
    assert with_rules == sorted(with_rules, reverse=True)
    assert 0 < sum(with_rules) < 16


@pytest.mark.parametrize("n", [0, 1, 50, 2_000])
def test_tables_of_any_length_stay_within_their_bounds(select: Select, tmp_path: Path, n: int) -> None:
    for number in range(n):
        write(tmp_path / "i", f"task-{number:04}", description=f"Does number {number} well. Use when it is wanted.")
    prompts = select(f"{MARKER}\n")

    instructions = prompts.server_instructions()

    assert COUNTER.count(instructions) <= 250
    assert len(instructions) <= SERVER_CHARS
    assert COUNTER.count(prompts.render("compact")) <= 400
    assert ("- task_0000: " in instructions) == (n == 1)
    assert ("- task_0000, task_0001, " in instructions) == (n > 1)
    assert ("More exist: call `list_instructions`" in instructions) == (n > 10)


def test_tags_that_fit_stand_in_the_table_where_their_descriptions_do_not(select: Select, tmp_path: Path) -> None:
    for name in (first + second for first in "abcdef" for second in "uvwxyz"):
        write(tmp_path / "i", name, description=f"Use when the task involves {name * 12} and many things.")
    table = select("<!-- iris:instructions max_tokens=260 -->\n").render("compact")
    shorter = select("<!-- iris:instructions max_tokens=700 -->\n").render("compact")

    assert "\n- au, av, aw, ax, ay, az, bu, " in table
    assert "When to use each: call `list_instructions`" in table
    assert "\n- au: auauau" in shorter


def test_a_description_too_long_for_the_table_does_not_hide_the_others(select: Select, tmp_path: Path) -> None:
    write(tmp_path / "i", "a", description="很" * 1_000)
    write(tmp_path / "i", "b", description="Does b.")
    instructions = select().server_instructions()

    assert "- b: Does b." in instructions
    assert "- a: 很很" in instructions
    assert COUNTER.count(instructions) <= 250


def test_the_tables_do_not_depend_on_the_tokenizer(tmp_path: Path) -> None:
    for number in range(100):
        write(tmp_path, f"task-{number:04}")

    def rendered(counter: TokenCounter) -> tuple[str, str]:
        library = InstructionLibrary([InstructionSource(folder=tmp_path, origin="folder", label="i")], counter)
        source = shipped("prompts") / "system.md"
        prompts = PromptSelector(source, library, LiveRollout(Settings(), []))
        return prompts.render("compact"), prompts.server_instructions()

    assert rendered(TokenCounter()) == rendered(TokenCounter(exact=False))
