"""The block in AGENTS.md: it comes, it changes, it goes, and every other byte stays."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iris_kv.block import install_block, uninstall_block
from iris_kv.errors import InvalidArgumentError, NotFoundError

TEXT = "## Rule\n\n- tag: use it"
BEGIN = "<!-- iris-kv:begin +0; written by `iris-kv prompt --install`, edits inside are lost -->"
END = "<!-- iris-kv:end -->"
BLOCK = f"{BEGIN}\n{TEXT}\n{END}\n".encode()
BOM = b"\xef\xbb\xbf"

contents = st.lists(
    st.one_of(
        st.sampled_from([b"\n", b"\r\n", b"\r", b"text", b"# Head", BOM, b"<!--", b"-->", b" ", b"\xff"]),
        st.binary(max_size=5).map(lambda raw: raw.replace(b"\0", b"")),
    ),
    max_size=12,
).map(b"".join)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "AGENTS.md"


def begin(n: int) -> bytes:
    return BEGIN.replace("+0", f"+{n}").encode()


def block(n: int, ending: bytes = b"\n") -> bytes:
    return b"".join(line + ending for line in [begin(n), *TEXT.encode().split(b"\n"), END.encode()])


# What is written


@pytest.mark.parametrize(
    ("before", "outcome", "after"),
    [
        (None, "created", block(0)),
        (b"", "added", block(0)),
        (b"# Ours\n", "added", b"# Ours\n\n" + block(1)),
        (b"# Ours", "added", b"# Ours\n\n" + block(2)),
        (b"# Ours\r\n", "added", b"# Ours\r\n\r\n" + block(1, b"\r\n")),
        (b"# Ours\r\nmore", "added", b"# Ours\r\nmore\r\n\r\n" + block(2, b"\r\n")),
        (BOM + b"# Ours\n", "added", BOM + b"# Ours\n\n" + block(1)),
        (BOM, "added", BOM + b"\n\n" + block(2)),
        (b"# Ours\r", "added", b"# Ours\r\n\n" + block(2)),
    ],
    ids=["absent", "empty", "text", "no last line end", "CRLF", "CRLF, no end", "BOM", "BOM alone", "CR alone"],
)
def test_the_block_is_put_after_what_is_there(path: Path, before: bytes | None, outcome: str, after: bytes) -> None:
    if before is not None:
        path.write_bytes(before)

    assert install_block(path, TEXT) == outcome
    assert path.read_bytes() == after


def test_a_second_install_changes_nothing_not_even_the_time(path: Path) -> None:
    install_block(path, TEXT)
    os.utime(path, ns=(1, 1))

    assert install_block(path, TEXT) == "unchanged"
    assert path.stat().st_mtime_ns == 1


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_refresh_changes_the_block_alone(path: Path, ending: bytes) -> None:
    path.write_bytes(b"Before" + ending)
    install_block(path, "old\nlines")
    path.write_bytes(path.read_bytes() + b"After" + ending)

    assert install_block(path, TEXT) == "refreshed"
    assert path.read_bytes() == b"Before" + ending * 2 + block(1, ending) + b"After" + ending


def test_a_block_at_the_start_is_found_behind_a_byte_order_mark(path: Path) -> None:
    path.write_bytes(BOM + BLOCK)

    assert install_block(path, TEXT) == "unchanged"
    uninstall_block(path)

    assert path.read_bytes() == BOM


def test_a_block_that_lost_its_last_line_end_is_found(path: Path) -> None:
    path.write_bytes(b"a\n\n" + block(1).rstrip())

    uninstall_block(path)

    assert path.read_bytes() == b"a\n"


# What is given back


@given(before=contents, first=st.text(max_size=20), second=st.text(max_size=20))
@example(before=b"a\r", first="x", second="y")
@example(before=b"\r\n", first="x", second="y")
@example(before=BOM, first="x", second="y")
def test_uninstall_gives_back_the_very_bytes(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, first: str, second: str
) -> None:
    path = tmp_path_factory.mktemp("block") / "AGENTS.md"
    path.write_bytes(before)

    install_block(path, f"- {first!r}")
    install_block(path, f"- {second!r}")
    uninstall_block(path)

    assert (path.read_bytes() if path.exists() else b"") == before


@given(before=contents, added=contents)
@example(before=b"no line end", added=b"added")
@example(before=b"lf\n", added=b"crlf\r\n")
def test_uninstall_keeps_what_was_added_after_the_block(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, added: bytes
) -> None:
    path = tmp_path_factory.mktemp("block") / "AGENTS.md"
    path.write_bytes(before)
    install_block(path, "- old")
    ending = b"\r\n" if b"\r\n" in before else b"\n"
    path.write_bytes(path.read_bytes() + added)

    install_block(path, TEXT)
    uninstall_block(path)

    ended = ending if before and added and not before.endswith(b"\n") else b""
    assert (path.read_bytes() if path.exists() else b"") == before + ended + added


def test_uninstall_takes_only_line_ends_that_are_still_there(path: Path) -> None:
    path.write_bytes(b"edited by hand\n" + block(2) + b"after\n")

    uninstall_block(path)

    assert path.read_bytes() == b"edited by hand" + b"after\n"


def test_a_file_that_held_nothing_else_goes(path: Path) -> None:
    install_block(path, TEXT)

    uninstall_block(path)

    assert list(path.parent.iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    "content",
    [
        BLOCK + BLOCK,
        BLOCK.replace(END.encode(), b""),
        BLOCK.replace(BEGIN.encode(), b""),
        f"{END}\n{BEGIN}\n".encode(),
        BLOCK + f"{END}\n".encode(),
    ],
    ids=["two", "no end", "no begin", "reversed", "two ends"],
)
def test_half_a_block_or_two_are_refused_and_nothing_is_written(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    for work in (lambda: install_block(path, TEXT), lambda: uninstall_block(path)):
        with pytest.raises(InvalidArgumentError, match=r"AGENTS\.md has . begin and . end lines of iris-kv"):
            work()
    assert path.read_bytes() == content


def test_marks_that_do_not_stand_at_the_start_of_a_line_are_text(path: Path) -> None:
    path.write_bytes(f"    {BEGIN}\nand `{END}`\n".encode())

    assert install_block(path, TEXT) == "added"


@pytest.mark.parametrize("content", ["text".encode("utf-16"), b"\x89PNG\0"])
def test_a_file_that_is_no_utf_8_text_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(InvalidArgumentError, match="is binary, or text in UTF-16"):
        install_block(path, TEXT)
    assert path.read_bytes() == content


def test_a_file_without_a_block_has_nothing_to_uninstall(path: Path) -> None:
    for content in (None, b"", b"# Ours\n"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(NotFoundError, match=r"AGENTS\.md has no block of iris-kv"):
            uninstall_block(path)


@pytest.mark.parametrize("name", [".", "none/AGENTS.md", "file/AGENTS.md"])
def test_a_place_that_cannot_be_written_is_told_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidArgumentError, match=r"cannot be (read|written) \("):
        install_block(tmp_path / name, TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# How it is written


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_the_files_mode_stays(path: Path, mode: int) -> None:
    path.write_bytes(b"# Ours\n")
    path.chmod(mode)

    install_block(path, TEXT)

    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "CLAUDE.md", tmp_path / "AGENTS.md"
    target.write_bytes(b"# Ours\n")
    link.symlink_to("CLAUDE.md")

    install_block(link, TEXT)
    installed = target.read_bytes()
    uninstall_block(link)

    assert (installed, target.read_bytes(), link.is_symlink()) == (b"# Ours\n\n" + block(1), b"# Ours\n", True)


def test_a_link_to_a_file_that_held_nothing_else_does_not_dangle(tmp_path: Path) -> None:
    target, link = tmp_path / "CLAUDE.md", tmp_path / "AGENTS.md"
    target.touch()
    link.symlink_to("CLAUDE.md")
    install_block(link, TEXT)

    uninstall_block(link)

    assert (target.read_bytes(), link.is_symlink()) == (b"", True)


def test_a_reader_never_sees_a_torn_file(path: Path) -> None:
    path.write_bytes(b"# Ours\n")
    with path.open("rb") as opened_before:
        install_block(path, TEXT)

        # The old file is whole for who has it open, so the new one came by a rename.
        assert opened_before.read() == b"# Ours\n"
    assert path.read_bytes() == b"# Ours\n\n" + block(1)
    assert [each.name for each in path.parent.iterdir()] == ["AGENTS.md"]
