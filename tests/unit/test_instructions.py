"""The library of instructions: what it serves, what it refuses, and how it keeps up with its folders."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iris_kv.errors import NotFoundError
from iris_kv.instructions import (
    Instruction,
    InstructionLibrary,
    InstructionSource,
    LibraryError,
    Section,
    section,
)
from iris_kv.model import digest_of
from iris_kv.settings import shipped
from iris_kv.tokens import TokenCounter

LONG_AGO_NS = 1_700_000_000_000_000_000


def text_of(
    name: str, *, body: str = "# Do it\n", version: str = "1.0.0", description: str = "Does it. Use for it."
) -> str:
    front = f'name: {name}\ndescription: {description}\nmetadata:\n  version: "{version}"\n'
    return f"---\n{front}---\n{body}"


def write(folder: Path, file: str, text: str | bytes) -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def source(folder: Path, origin: Literal["shipped", "folder", "workspace"] = "folder") -> InstructionSource:
    return InstructionSource(folder=folder, origin=origin, label=folder.name)


def library_of(folder: Path) -> InstructionLibrary:
    return InstructionLibrary([source(folder)])


def only(folder: Path) -> Instruction:
    library = library_of(folder)
    assert library.errors == ()
    (instruction,) = library.instructions
    return instruction


def with_body(folder: Path, body: str | bytes) -> Instruction:
    raw = body if isinstance(body, bytes) else body.encode()
    write(folder, "a.md", text_of("a", body="").encode() + raw)
    return only(folder)


def problems_of(folder: Path) -> list[str]:
    return [error.problem for error in library_of(folder).errors]


# What a file says


def test_files_with_an_order_come_first_in_that_order(tmp_path: Path) -> None:
    for name, order in (("a", ""), ("b", "10"), ("c", "9"), ("d", "")):
        metadata = f'metadata:\n  order: "{order}"\n' if order else ""
        write(tmp_path, f"{name}.md", f"---\nname: {name}\ndescription: It.\n{metadata}---\n# X\n".encode())

    assert library_of(tmp_path).tags == ("c", "b", "a", "d")


def test_a_file_is_served_with_all_that_its_front_matter_says(tmp_path: Path) -> None:
    raw = (
        b"---\nname: web-development\ndescription: >\n  Builds pages.\n  Use for pages.\nlicense: MIT\n"
        b'metadata:\n  version: "1.2.0"\n  essentials: Test it.\n  author: me\nallowed-tools: [Bash]\n---\n# Web\n'
    )
    path = write(tmp_path, "Web_Development_instructions.md", raw)

    instruction = only(tmp_path)

    assert instruction == Instruction(
        tag="web_development",
        name="web-development",
        description="Builds pages. Use for pages.",
        essentials="Test it.",
        version="1.2.0",
        order="",
        references="",
        digest=digest_of(raw),
        origin="folder",
        source=tmp_path.name,
        file=f"{tmp_path.name}/Web_Development_instructions.md",
        path=path,
        raw=raw,
        body=b"# Web\n",
        aliases=("web-development", "Web_Development_instructions", "web_development_instructions"),
        flaws=(),
        counter=TokenCounter(),
        overrides=None,
    )
    assert instruction.warnings == ()


def test_the_shipped_instructions_have_no_errors_and_no_warnings() -> None:
    library = InstructionLibrary([source(shipped("instructions"), "shipped")])

    assert library.errors == ()
    assert [instruction.warnings for instruction in library.instructions] == [()] * len(library.tags)
    assert {"presentation", "document_creation", "research", "web_development"} <= set(library.tags)


def test_a_version_at_the_top_level_counts_where_metadata_has_none(tmp_path: Path) -> None:
    write(tmp_path, "a.md", '---\nname: a\ndescription: Does it.\nversion: "7"\n---\nDo it.\n')

    assert only(tmp_path).version == "7"


@pytest.mark.parametrize("head", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_front_matter_is_cut_at_its_closing_line_whatever_its_newlines(
    tmp_path: Path, head: bytes, newline: bytes
) -> None:
    front = newline.join([b"---", b"name: a", b"description: Does it. ---", b"---", b""])

    write(tmp_path, "a.md", head + front + b"\r\n \r# A\r\n---\r\nend")

    assert only(tmp_path).body == b"\r\n \r# A\r\n---\r\nend"


VISIBLE = st.characters(
    exclude_categories=["Cs"],
    exclude_characters=["\0", *map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE0080)])],
)


@given(body=st.lists(st.sampled_from(["\r", "\r\n", "\n", "{{x}}", "---\n", "# "]) | st.text(VISIBLE)).map("".join))
def test_body_bytes_are_preserved_exactly(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    assume(body.encode().strip())
    folder = tmp_path_factory.mktemp("body")

    instruction = with_body(folder, body)

    assert instruction.body == body.encode()
    assert instruction.raw.endswith(instruction.body)


def test_a_file_gives_its_tokens_and_its_warnings(tmp_path: Path) -> None:
    write(tmp_path, "other/SKILL.md", "---\nname: long\ndescription: It is long.\n---\n" + "word and word\n" * 1_200)
    counter = TokenCounter()

    (instruction,) = InstructionLibrary([source(tmp_path)], counter).instructions

    assert instruction.tokens == counter.count("word and word\n" * 1_200)
    assert instruction.warnings == (
        f"the body has {instruction.tokens:,} tokens; at most 3,500 are read well; move a part to a file of its own",
        "the body has 1,200 lines; at most 500 are read well; move a part to a file of its own",
        "the folder is 'other' and the name 'long'; give both one name",
        'there is no version; add metadata with version: "1.0.0"',
    )


@pytest.mark.parametrize(("newline", "last"), [("\n", ""), ("\r\n", ""), ("\r", ""), ("\n", "x")])
def test_five_hundred_lines_are_not_too_many_and_one_more_is(tmp_path: Path, newline: str, last: str) -> None:
    lines = [f"{n}" for n in range(500)]

    fits = with_body(tmp_path, newline.join(lines) + newline * (not last))
    over = with_body(tmp_path, newline.join([*lines, "x"]) + newline * (not last))

    assert fits.warnings == ()
    assert [warning.split(";")[0] for warning in over.warnings] == ["the body has 501 lines"]


# What a file may not be

GOOD = "name: a\ndescription: Does it.\n"
BROKEN: dict[str, tuple[bytes, str]] = {
    "no front matter": (
        b"# A readme of another kind\n",
        (
            "has no front matter; a file starts with the lines ---, name: ..., description: ... and ---; "
            "write these lines at its top"
        ),
    ),
    "front matter without an end": (b"---\nname: a\n", "has no front matter; "),
    "front matter that is too long": (
        b"---\n" + GOOD.encode() + b"# " + b"x" * 16_384 + b"\n---\nbody",
        "has long front matter; it is at most 16,384 bytes; shorten it",
    ),
    "no YAML": (b"---\nname: a\nd: {\n---\nbody", "has front matter that is not YAML: "),
    "a YAML list": (b"---\n- a\n---\nbody", "has front matter that is not a mapping; "),
    "nothing between the lines": (b"---\n---\nbody", "has front matter that is not a mapping; "),
    "a duplicate field": (b"---\nname: b\n" + GOOD.encode() + b"---\nbody", "field 'name' is there twice; "),
    "two documents": (b"---\n" + GOOD.encode() + b"--- b\n---\nbody", "has front matter that is not YAML: "),
    "no name": (
        b"---\ndescription: Does it.\n---\nbody",
        (
            "field 'name' is missing; it is 1 to 64 lower-case letters, digits and hyphens; "
            "add a line name: ... to the front matter"
        ),
    ),
    "a name in capitals": (
        b"---\nname: Web Development\ndescription: Does it.\n---\nbody",
        (
            "field 'name' is 'Web Development'; it is 1 to 64 lower-case letters, digits and hyphens; "
            "write name: web-development"
        ),
    ),
    "a name that is too long": (
        b"---\nname: " + b"a" * 65 + b"\ndescription: Does it.\n---\nbody",
        "field 'name' has 65 characters; ",
    ),
    "a name that is a number": (
        b"---\nname: 7\ndescription: Does it.\n---\nbody",
        (
            "field 'name' is a YAML int; it is 1 to 64 lower-case letters, digits and hyphens; "
            'put it in quotes: name: "7"'
        ),
    ),
    "an empty description": (b'---\nname: a\ndescription: " "\n---\nbody', "field 'description' is ''; "),
    "a description that is null": (b"---\nname: a\ndescription:\n---\nbody", "field 'description' is a YAML null; "),
    "a description that is a list": (
        b"---\nname: a\ndescription: [b]\n---\nbody",
        "field 'description' is a YAML seq; ",
    ),
    "a description that is too long": (
        b"---\nname: a\ndescription: " + b"x" * 1_025 + b"\n---\nbody",
        (
            "field 'description' has 1,025 characters; it is 1 to 1,024 characters: "
            "what the instruction does and when to use it; mend description in the front matter"
        ),
    ),
    "metadata that is a string": (
        b"---\n" + GOOD.encode() + b"metadata: x\n---\nbody",
        "field 'metadata' is a YAML str; it is a mapping of strings; mend metadata in the front matter",
    ),
    "a version that is a number": (
        b"---\n" + GOOD.encode() + b"metadata:\n  version: 1.0\n---\nbody",
        (
            "field 'metadata.version' is a YAML float; it is a string of at most 64 characters; "
            'put it in quotes: version: "1.0"'
        ),
    ),
    "other metadata that is a date": (
        b"---\n" + GOOD.encode() + b"metadata:\n  since: 2026-01-01\n---\nbody",
        (
            "field 'metadata.since' is a YAML timestamp; the values of metadata are strings; "
            'put it in quotes: since: "2026-01-01"'
        ),
    ),
    "an empty body": (
        b"---\n" + GOOD.encode() + b"---\n \r\n\t",
        "has an empty body; instructions follow the front matter; write them",
    ),
    "Latin-1": (
        b"---\n" + GOOD.encode() + b"---\ncaf\xe9",
        "byte 41 is not UTF-8; a file is UTF-8; convert it",
    ),
    "a NUL": (
        b"---\n" + GOOD.encode() + b"---\na\0",
        "line 5 has U+0000; NUL, tag characters and bidi overrides hide text from a person's eyes; take it out",
    ),
    "a tag character": (b"---\n" + GOOD.encode() + "---\na\n\U000e0041".encode(), "line 6 has U+E0041; "),
    "a bidi override": (b"---\n" + GOOD.encode() + "---\n\u202e".encode(), "line 5 has U+202E; "),
    "a bidi isolate": (b"---\n" + GOOD.encode() + "---\n\u2067".encode(), "line 5 has U+2067; "),
    "an escaped bidi override": (
        b'---\nname: a\ndescription: "x \\u202E y"\n---\nbody',
        "field 'description' has an escaped unseen character; ",
    ),
    "an escaped control character": (
        b'---\nname: a\ndescription: "x \\e[2J y"\n---\nbody',
        "field 'description' has an escaped unseen character; ",
    ),
    "a file that is too large": (
        b"---\n" + GOOD.encode() + b"---\n" + b"x" * 1_000_000,
        "is too large; at most 1,000,000 bytes are read; split it",
    ),
}


@pytest.mark.parametrize(("raw", "problem"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_an_error_that_names_file_field_and_fix(tmp_path: Path, raw: bytes, problem: str) -> None:
    write(tmp_path, "broken.md", raw)
    write(tmp_path, "good.md", text_of("good"))

    library = library_of(tmp_path)

    assert library.tags == ("good",)
    (error,) = library.errors
    assert error.file == f"{tmp_path.name}/broken.md"
    assert error.problem.startswith(problem)
    assert len(error.problem.split("; ")) >= 3


def test_all_problems_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.md", b"---\nname: A\nversion: 1\nmetadata:\n  version: 2\n---\n")

    assert [problem.split(";")[0] for problem in problems_of(tmp_path)] == [
        "field 'name' is 'A'",
        "field 'description' is missing",
        "field 'version' is a YAML int",
        "field 'metadata.version' is a YAML int",
        "has an empty body",
    ]


def test_a_yaml_error_names_the_line_in_the_file(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "---\nname: a\ndescription: one: two\n---\nbody\n")

    (problem,) = problems_of(tmp_path)

    assert "line 3, column 17" in problem


MERGE_BOMB = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}\n" for n in range(1, 20))
ALIAS_BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 20))


@pytest.mark.parametrize(
    "extra",
    [
        MERGE_BOMB,
        ALIAS_BOMB,
        "a: &a [*a]\n",
        "a: !!timestamp no\n",
        "a: !!int ''\n",
        "a: !!bool x\n",
        "2026-99-99: 1\n",
        "? [a, b]\n: 1\n",
        "a: !!python/object:os {}\n",
    ],
    ids=["merge bomb", "alias bomb", "loop", "timestamp", "int", "bool", "date key", "list key", "python"],
)
def test_odd_yaml_in_fields_that_nobody_reads_does_no_harm(tmp_path: Path, extra: str) -> None:
    write(tmp_path, "a.md", f"---\n{GOOD}{extra}---\nbody\n")

    assert only(tmp_path).tag == "a"


@pytest.mark.parametrize("extra", ["[" * 8_000, "- " * 4_000, "? " * 4_000, "{a: " * 4_000, "a: *b"])
def test_yaml_that_would_break_a_parser_is_an_error_of_its_file_alone(tmp_path: Path, extra: str) -> None:
    write(tmp_path, "a.md", f"---\n{GOOD}other:\n  {extra}\n---\nbody\n")
    write(tmp_path, "b.md", text_of("b"))

    library = library_of(tmp_path)

    assert library.tags == ("b",)
    assert [error.file for error in library.errors] == [f"{tmp_path.name}/a.md"]


def test_a_bomb_where_a_string_should_be_is_named_by_its_kind_only(tmp_path: Path) -> None:
    write(tmp_path, "a.md", f"---\n{ALIAS_BOMB}name: a\ndescription: *a19\n---\nbody\n")

    (problem,) = problems_of(tmp_path)

    assert problem.startswith("field 'description' is a YAML seq; ")


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.md").open("wb") as file:
        file.truncate(1 << 40)

    assert problems_of(tmp_path) == ["is too large; at most 1,000,000 bytes are read; split it"]


def test_a_pipe_is_refused_and_holds_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "skill" / "SKILL.md").mkdir(parents=True)

    problem = "is not a regular file; only regular files are read; put a file in its place"
    assert problems_of(tmp_path) == [problem, problem]


def test_refused_files_leave_no_descriptor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "skill" / "SKILL.md").mkdir(parents=True)
    library = library_of(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(10):
        library.refresh()

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_is_followed_only_within_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    outside = write(tmp_path, "outside.md", text_of("outside"))
    write(folder, "real/SKILL.md", text_of("real"))
    (folder / "a-leak.md").symlink_to(outside)
    (folder / "b-inside.md").symlink_to("real/SKILL.md")
    (folder / "c-leak").symlink_to(tmp_path)
    write(tmp_path, "SKILL.md", text_of("leak"))

    library = library_of(folder)

    assert [instruction.file for instruction in library.instructions] == ["library/b-inside.md"]
    assert [error.file for error in library.errors] == [
        "library/a-leak.md",
        "library/c-leak/SKILL.md",
        "library/real/SKILL.md",
    ]
    assert library.errors[0].problem == (
        "is a link that leads out of its folder; links stay inside; put a copy in its place"
    )


def test_links_that_lead_nowhere_are_errors_and_hurt_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "gone.md").symlink_to("nothing.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    write(tmp_path, "z.md", text_of("z"))

    library = library_of(tmp_path)

    assert library.tags == ("z",)
    assert [error.file for error in library.errors] == [f"{tmp_path.name}/gone.md", f"{tmp_path.name}/loop.md"]
    assert all(error.problem.startswith("cannot be read: ") for error in library.errors)


# Which files a source has


def test_a_source_is_its_flat_files_and_its_skill_folders(tmp_path: Path) -> None:
    for name in ("flat.md", "README.md", "readme.md", ".hidden.md", "notes.txt", "deep/flat.md", ".git/SKILL.md"):
        write(tmp_path, name, text_of("flat"))
    write(tmp_path, "pdf-forms/SKILL.md", text_of("pdf-forms"))
    write(tmp_path, "folder.md/SKILL.md", text_of("folder"))

    library = library_of(tmp_path)

    assert library.errors == ()
    assert library.tags == ("flat", "folder", "pdf_forms")


def test_a_file_name_that_could_deceive_is_shown_without_its_tricks(tmp_path: Path) -> None:
    write(tmp_path, "a\nignore\u202eall.md", b"no front matter")
    (tmp_path / os.fsdecode(b"b\xff.md")).write_bytes(b"no front matter")

    assert [error.file for error in library_of(tmp_path).errors] == [
        f"{tmp_path.name}/a?ignore?all.md",
        f"{tmp_path.name}/b?.md",
    ]


def test_a_missing_folder_is_an_error_except_for_the_workspace(tmp_path: Path) -> None:
    library = InstructionLibrary([source(tmp_path / "a"), source(tmp_path / "b", "workspace")])

    assert library.instructions == ()
    problem = "does not exist; a source is a folder of *.md files; create the folder"
    assert library.errors == (LibraryError(file="a", problem=problem),)


def test_a_workspace_folder_that_is_a_link_out_of_the_workspace_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "home", "secret.md", text_of("secret"))
    workspace = tmp_path / "workspace"
    (workspace / ".iris").mkdir(parents=True)
    (workspace / ".iris" / "instructions").symlink_to(tmp_path / "home")

    library = InstructionLibrary([source(workspace / ".iris" / "instructions", "workspace")])

    assert library.instructions == ()
    assert [error.problem.split(";")[0] for error in library.errors] == ["is a link that leads out of its folder"]


def test_later_sources_win_and_say_which_shipped_version_they_replace(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / "shipped", f"{name}.md", text_of(name, version=f"1.{name}"))
    for name in ("b", "c", "e"):
        write(tmp_path / "folder", f"{name}.md", text_of(name, version="2"))
    for name in ("c", "f"):
        write(tmp_path / "workspace", f"{name}.md", text_of(name, version="3"))

    library = InstructionLibrary([source(tmp_path / origin, origin) for origin in ("shipped", "folder", "workspace")])

    assert [(found.origin, found.tag, found.version, found.overrides) for found in library.instructions] == [
        ("workspace", "c", "3", "1.c"),
        ("workspace", "f", "3", None),
        ("folder", "b", "2", "1.b"),
        ("folder", "e", "2", None),
        ("shipped", "a", "1.a", None),
        ("shipped", "d", "1.d", None),
    ]


def test_of_two_files_with_one_tag_the_first_by_name_is_served(tmp_path: Path) -> None:
    write(tmp_path, "b.md", text_of("same", version="b"))
    write(tmp_path, "a.md", text_of("same", version="a"))

    library = library_of(tmp_path)

    assert library.get("same").version == "a"
    problem = f"its tag 'same' is that of {tmp_path.name}/a.md; a source has a tag once; rename one"
    assert library.errors == (LibraryError(file=f"{tmp_path.name}/b.md", problem=problem),)


# Keeping up


def test_a_refresh_without_changes_says_so_and_keeps_every_instruction(tmp_path: Path) -> None:
    write(tmp_path / "shipped", "a.md", text_of("a"))
    write(tmp_path / "shipped", "b.md", text_of("b"))
    write(tmp_path / "folder", "a.md", text_of("a"))
    library = InstructionLibrary([source(tmp_path / "shipped", "shipped"), source(tmp_path / "folder")])
    before = library.instructions

    assert library.refresh() is False
    os.utime(tmp_path / "folder" / "a.md")
    os.utime(tmp_path / "shipped" / "b.md", ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert library.refresh() is False

    assert library.errors == ()
    assert [now is then for now, then in zip(library.instructions, before, strict=True)] == [True, True]


def test_an_added_a_changed_and_a_deleted_file_are_each_a_change(tmp_path: Path) -> None:
    write(tmp_path, "a.md", text_of("a"))
    library = library_of(tmp_path)

    write(tmp_path, "b.md", text_of("b"))
    assert (library.refresh(), library.tags) == (True, ("a", "b"))
    write(tmp_path, "a.md", text_of("a", version="2.0.0"))
    assert (library.refresh(), library.get("a").version) == (True, "2.0.0")
    (tmp_path / "a.md").unlink()
    assert (library.refresh(), library.tags) == (True, ("b",))
    assert library.refresh() is False


def test_two_writes_within_one_tick_of_the_clock_are_both_seen(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a", version="1.0.0"))
    written_ns = path.stat().st_mtime_ns
    library = library_of(tmp_path)

    path.write_text(text_of("a", version="1.0.1"))
    os.utime(path, ns=(written_ns, written_ns))

    assert library.refresh() is True
    assert library.get("a").version == "1.0.1"


def test_a_file_with_an_old_and_unchanged_stamp_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a", version="1.0.0"))
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    library = library_of(tmp_path)

    path.write_text(text_of("a", version="1.0.1"))
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))

    assert library.refresh() is False
    assert library.get("a").version == "1.0.0"


@pytest.mark.parametrize("broken", [b"no front matter", b"\xff", b"x" * 1_000_001, None])
def test_a_file_that_breaks_keeps_serving_and_shows_its_error_until_mended(
    tmp_path: Path, broken: bytes | None
) -> None:
    path = write(tmp_path, "a.md", text_of("a"))
    library = library_of(tmp_path)
    before = library.get("a")

    path.unlink()
    os.mkfifo(path) if broken is None else path.write_bytes(broken)
    assert library.refresh() is False
    assert (library.get("a") is before, len(library.errors)) == (True, 1)
    assert library.refresh() is False

    path.unlink()
    write(tmp_path, "a.md", text_of("a", version="2"))
    assert library.refresh() is True
    assert (library.get("a").version, library.errors) == ("2", ())


def test_a_broken_file_that_gets_its_old_text_back_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", text_of("a"))
    library = library_of(tmp_path)
    path.write_text("broken")
    library.refresh()

    path.write_text(text_of("a"))

    assert library.refresh() is False
    assert library.errors == ()


def test_a_file_that_was_never_good_lets_the_lower_source_serve(tmp_path: Path) -> None:
    write(tmp_path / "shipped", "a.md", text_of("a"))
    path = write(tmp_path / "folder", "a.md", "broken")
    library = InstructionLibrary([source(tmp_path / "shipped", "shipped"), source(tmp_path / "folder")])

    assert (library.get("a").origin, len(library.errors)) == ("shipped", 1)
    path.write_text(text_of("a"))
    assert library.refresh() is True
    assert (library.get("a").origin, library.errors) == ("folder", ())
    path.unlink()
    assert library.refresh() is True
    assert library.get("a").origin == "shipped"


def test_a_folder_that_appears_and_goes_is_followed(tmp_path: Path) -> None:
    library = library_of(tmp_path / "late")

    path = write(tmp_path / "late", "a.md", text_of("a"))
    assert (library.refresh(), library.tags, library.errors) == (True, ("a",), ())
    path.unlink()
    path.parent.rmdir()
    assert (library.refresh(), library.tags, len(library.errors)) == (True, (), 1)


def test_a_folder_that_cannot_be_read_now_keeps_what_it_served(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder, "a.md", text_of("a"))
    library = library_of(folder)

    (folder / "a.md").unlink()
    folder.rmdir()
    folder.symlink_to(folder)

    assert library.refresh() is False
    assert library.tags == ("a",)
    assert [error.problem.split(":")[0] for error in library.errors] == ["cannot be read"]


def test_of_many_refreshes_at_once_one_sees_the_change(tmp_path: Path) -> None:
    library = library_of(tmp_path)
    for n in range(50):
        write(tmp_path, f"{n}.md", text_of(f"t{n}"))
    start = threading.Barrier(8)

    def refresh(_: int) -> tuple[bool, int]:
        start.wait(timeout=10)
        return library.refresh(), len(library.tags)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(refresh, range(8)))

    assert sorted(results) == [(False, 50)] * 7 + [(True, 50)]


# Finding one


@pytest.mark.parametrize(
    "name",
    ["web_development", "web-development", "Web-Dev", "web_dev", "WEB-DEVELOPMENT", "WEB-dev", " Web-Development "],
)
def test_an_instruction_answers_to_its_tag_and_its_aliases(tmp_path: Path, name: str) -> None:
    write(tmp_path, "Web-Dev.md", text_of("web-development"))

    assert library_of(tmp_path).get(name).tag == "web_development"


def test_case_is_forgiven_before_hyphens_are(tmp_path: Path) -> None:
    write(tmp_path, "x-y.md", text_of("one"))
    write(tmp_path, "x_y.md", text_of("two"))
    library = library_of(tmp_path)

    assert [library.get(name).tag for name in ("x-y", "X-Y", "x_y", "X_Y", "ONE")] == [
        "one",
        "one",
        "two",
        "two",
        "one",
    ]


def test_a_skill_answers_to_its_folders_name(tmp_path: Path) -> None:
    write(tmp_path, "PDF/SKILL.md", text_of("pdf-forms"))

    instruction = only(tmp_path)

    assert instruction.aliases == ("pdf-forms", "PDF", "pdf")
    assert library_of(tmp_path).get("Pdf") == instruction


def test_an_alias_never_hides_a_tag(tmp_path: Path) -> None:
    write(tmp_path / "folder", "a-b.md", text_of("other"))
    write(tmp_path / "folder", "plain.md", text_of("third"))
    write(tmp_path / "shipped", "x.md", text_of("a-b"))
    write(tmp_path / "shipped", "y.md", text_of("plain"))
    library = InstructionLibrary([source(tmp_path / "shipped", "shipped"), source(tmp_path / "folder")])

    assert {name: library.get(name).tag for name in ("a_b", "a-b", "A-B", "plain", "PLAIN")} == {
        "a_b": "a_b",
        "a-b": "a_b",
        "A-B": "a_b",
        "plain": "plain",
        "PLAIN": "plain",
    }


def test_an_unknown_tag_gets_the_valid_ones_with_when_to_use_them(tmp_path: Path) -> None:
    write(tmp_path, "a.md", text_of("cooking", description="Cooks. Use for meals."))
    write(tmp_path, "b.md", text_of("web-development", description="Builds. Use for pages."))

    with pytest.raises(NotFoundError) as caught:
        library_of(tmp_path).get("web-developer")

    assert str(caught.value) == (
        "not_found: no instruction 'web-developer'; there are: web_development (Builds. Use for pages.), "
        "cooking (Cooks. Use for meals.); call get_instruction with one of these tags, "
        "or list_instructions with a query to search all"
    )


def test_an_unknown_tag_in_a_large_library_gets_the_nearest_within_a_bound(tmp_path: Path) -> None:
    for n in range(200):
        write(tmp_path, f"{n}.md", text_of(f"task-{n}", description="Does it. Use for it. " * 10))
    library = library_of(tmp_path)

    with pytest.raises(NotFoundError) as caught:
        library.get("Task-1x77" + "y" * 100_000)
    with pytest.raises(NotFoundError) as near:
        library.get("task-1777")

    assert len(str(caught.value)) <= 3_000
    assert "there are: task_177 (" in str(near.value)
    assert " more; call get_instruction" in str(near.value)
    assert len(str(near.value)) <= 3_000


def test_an_empty_library_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the library is empty"):
        InstructionLibrary([]).get("a")


# Sections


def slices(instruction: Instruction) -> list[tuple[str, bytes]]:
    return [(found.slug, instruction.body[found.start : found.end]) for found in instruction.sections]


def test_a_section_runs_to_the_next_heading_of_its_level_or_higher(tmp_path: Path) -> None:
    instruction = with_body(tmp_path, "intro\n# A\n## B\nb\n### C\n## D\nd\n# E #\n")

    assert instruction.sections == (
        Section(slug="a", title="A", level=1, start=6, end=30),
        Section(slug="b", title="B", level=2, start=10, end=23),
        Section(slug="c", title="C", level=3, start=17, end=23),
        Section(slug="d", title="D", level=2, start=23, end=30),
        Section(slug="e", title="E", level=1, start=30, end=36),
    )
    assert slices(instruction) == [
        ("a", b"# A\n## B\nb\n### C\n## D\nd\n"),
        ("b", b"## B\nb\n### C\n"),
        ("c", b"### C\n"),
        ("d", b"## D\nd\n"),
        ("e", b"# E #\n"),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_offsets_are_bytes_whatever_the_newlines_and_the_letters(tmp_path: Path, newline: str) -> None:
    lines = ["héading\u2028# no\x0c\x0b\x85# no", "", "# Ünï 🎉", "日本", "", "Two", "lines", "===", "x"]

    instruction = with_body(tmp_path, newline.join(lines))

    body = newline.join(lines).encode()
    first, second = body.index("# Ünï".encode()), body.index(b"Two")
    assert instruction.sections == (
        Section(slug="ünï", title="Ünï 🎉", level=1, start=first, end=second),
        Section(slug="two-lines", title="Two lines", level=1, start=second, end=len(body)),
    )


def test_headings_within_lists_quotes_and_fences_are_no_sections(tmp_path: Path) -> None:
    body = "- # list\n\n  ## list\n\n> # quote\n\n```\n# fence\n```\n\n    # code\n\n<!--\n# html\n-->\n\n# Real\n#no\n"

    assert [found.title for found in with_body(tmp_path, body).sections] == ["Real"]


def test_slugs_are_unique_and_keep_the_letters_of_every_language(tmp_path: Path) -> None:
    titles = [
        *("Set up", "Set-up!", "set up 2", "`Set` *up*", "Don't", "Überblick", "हिन्दी पाठ", "数据 分析", "!?"),
        *("", "See [the guide](https://example.org/a_(b)) now", "put_artifact"),
    ]

    instruction = with_body(tmp_path, "".join(f"# {title}\n" for title in titles))

    assert [found.slug for found in instruction.sections] == [
        *("set-up", "set-up-2", "set-up-2-2", "set-up-3", "dont", "überblick", "हिन्दी-पाठ", "数据-分析", "section"),
        *("section-2", "see-the-guide-now", "put-artifact"),
    ]
    assert [found.title for found in instruction.sections] == titles


def test_a_thousand_equal_headings_at_the_size_limit_are_found_in_linear_time(tmp_path: Path) -> None:
    instruction = with_body(tmp_path, "# a\n" * 20_000)

    assert [found.slug for found in instruction.sections[-2:]] == ["a-19999", "a-20000"]


WORDS = st.sampled_from(["Setup", "Größe", "日本", "a b", "`code`", "x_y", "Ende!"])
BLOCKS = st.one_of(
    st.tuples(st.just("atx"), st.integers(1, 6), WORDS),
    st.tuples(st.just("setext"), st.integers(1, 2), WORDS),
    st.tuples(st.just("text"), st.just(0), WORDS | st.sampled_from(["#nospace", "{{x}}", "\\# escaped", "a\u2028# b"])),
    st.tuples(st.just("fence"), st.just(0), WORDS),
    st.tuples(st.just("list"), st.just(0), WORDS),
    st.tuples(st.just("quote"), st.just(0), WORDS),
)


def lines_of(kind: str, level: int, words: str) -> list[str]:
    return {
        "atx": [f"{'#' * level} {words}"],
        "setext": [words, "===" if level == 1 else "---"],
        "text": [words, words],
        "fence": ["```", f"# {words}", "```"],
        "list": [f"- # {words}"],
        "quote": [f"> # {words}"],
    }[kind]


@given(blocks=st.lists(BLOCKS, max_size=12), newline=st.sampled_from(["\n", "\r\n", "\r"]), end=st.booleans())
def test_sections_start_at_their_headings_and_nest_by_level(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[str, int, str]], newline: str, end: bool
) -> None:
    lines, heads = ["start", ""], list[tuple[int, int, str]]()
    for kind, level, words in blocks:
        if level:
            heads.append((len(newline.join([*lines, ""]).encode()), level, words))
        lines += [*lines_of(kind, level, words), ""]
    body = newline.join(lines[: None if end else -1]).encode()

    sections = with_body(tmp_path_factory.mktemp("sections"), body).sections

    assert [(found.start, found.level, found.title) for found in sections] == heads
    for n, found in enumerate(sections):
        following = (later.start for later in sections[n + 1 :] if later.level <= found.level)
        assert found.end == next(following, len(body))
        assert body[found.start : found.end].lstrip(b"# ").startswith(found.title.encode())
    assert len({found.slug for found in sections}) == len(sections)


@pytest.mark.parametrize("name", ["slow-food", "Slow  food", "SLOW FOOD", "Slow `food`", "slow_food"])
def test_a_section_is_found_by_slug_or_title(tmp_path: Path, name: str) -> None:
    instruction = with_body(tmp_path, "# Fast\n# Slow food\n")

    assert section(instruction, name).slug == "slow-food"


def test_a_slug_comes_before_a_title_and_the_first_of_two_titles_before_the_second(tmp_path: Path) -> None:
    instruction = with_body(tmp_path, "# a-2\n# A\n# A\n# A++\n# a 2\n")

    assert [found.slug for found in instruction.sections] == ["a-2", "a", "a-3", "a-4", "a-2-2"]
    assert [found.slug for found in (section(instruction, name) for name in ("a-2", "A", "a++", "A 2"))] == [
        *("a-2", "a", "a-4", "a-2-2"),
    ]


def test_an_unknown_section_gets_the_slugs_nearest_first(tmp_path: Path) -> None:
    instruction = with_body(tmp_path, "# Fast\n# Slow food\n")

    with pytest.raises(NotFoundError) as caught:
        section(instruction, "Slow foot")

    assert str(caught.value) == (
        "not_found: a has no section 'Slow foot'; its sections are slow-food, fast; "
        "call get_instruction with one of them, or without a section"
    )


def test_an_instruction_without_sections_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="it has no sections; ask for all of it"):
        section(with_body(tmp_path, "text"), "a")
