"""The verb split: what it writes, what it says, and what --verify finds."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli_verbs import Cli, isolated_cli

cli = pytest.fixture(isolated_cli)

LINE = "Keep the change small, run every test, and say in the commit what changed and why it had to.\n"
PROMPT = (
    "# \N{OWL} Assistant\n\nYou help people with their repositories.\n\n"
    + "".join(
        f"## {title}\n\nUse this when the user asks for {about}.\n\n- Always check {about} twice.\n\n{LINE * 150}\n"
        for title, about in (("Commits", "a commit"), ("Reviews", "a review"), ("Releases", "a release"))
    )
).encode()


@pytest.fixture
def prompt(cli: Cli) -> Path:
    path = cli.workspace / "PROMPT.md"
    path.write_bytes(PROMPT)
    return path


def test_a_split_writes_a_folder_that_verifies(cli: Cli, prompt: Path) -> None:
    said = cli("split", "PROMPT.md", "--out", "out").text
    checked = cli("split", "--verify", "out").text

    written = sorted(str(path.relative_to(cli.workspace / "out")) for path in (cli.workspace / "out").rglob("*.*"))
    assert written == [
        "instructions/commits.md",
        "instructions/releases.md",
        "instructions/reviews.md",
        "manifest.json",
        "prompts/system.md",
        "source.md",
    ]
    assert f"coverage: 100 % of {len(PROMPT):,} bytes, in the core and 3 instructions" in said
    assert "  line 9 -> commits: - Always check a commit twice." in said
    assert "iris-kv serve --instructions out/instructions --prompt out/prompts/system.md" in said
    assert checked == (
        f"{len(PROMPT):,} of {len(PROMPT):,} bytes of the source are there, unchanged\n"
        "the files rebuild the source, byte for byte\n"
    )
    assert not (cli.workspace / ".iris").exists()


def test_an_instruction_is_front_matter_and_exactly_its_span(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")

    manifest = json.loads((cli.workspace / "out/manifest.json").read_bytes())
    for piece in manifest["pieces"]:
        raw = (cli.workspace / "out" / piece["file"]).read_bytes()
        front, body = raw[: -(piece["end"] - piece["start"])], raw[-(piece["end"] - piece["start"]) :]
        assert body == PROMPT[piece["start"] : piece["end"]]
        assert front.startswith(b"---\nname: ")
        assert front.endswith(b"\n---\n")


def test_the_report_as_json_counts_everything(cli: Cli, prompt: Path) -> None:
    report = cli("split", "PROMPT.md", "--out", "out", "--json").json

    assert report["covered_bytes"] == report["source_bytes"] == len(PROMPT)
    assert report["standing_tokens"] == report["core_tokens"] + report["tool_tokens"] + report["server_tokens"]
    assert report["tool_tokens"] > 500
    assert [piece["tag"] for piece in report["pieces"]] == ["commits", "reviews", "releases"]
    assert {rule["tag"] for rule in report["moved_rules"]} == {"commits", "reviews", "releases"}
    assert report["pays"] is True


def test_a_small_prompt_is_split_and_told_that_it_does_not_pay(cli: Cli) -> None:
    (cli.workspace / "small.txt").write_text("Be kind. Never lie.\n")

    said = cli("split", "small.txt", "--out", "out").text

    assert "iris-kv costs more than it saves here: the prompt has" in said
    assert cli("split", "--verify", "out").text.endswith("byte for byte\n")


def test_split_instructions_pass_the_strict_check(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")

    assert cli("instructions", "check", "--strict", "out/instructions").text.endswith("3 instructions, 0 problems\n")


def test_with_its_prompt_the_verbs_show_the_instructions_of_a_split_alone(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    served = ("--instructions", "out/instructions", "--prompt", "out/prompts/system.md")

    listed = cli("instructions", "list", *served).text
    checked = cli("instructions", "check", *served).text

    assert [line.partition(" ")[0] for line in listed.splitlines()] == ["commits", "reviews", "releases"]
    assert checked.endswith("3 instructions, 0 problems\n")
    assert "not_found: " in cli("instructions", "show", "research", *served, code=3).err
    assert cli("instructions", "show", "commits", *served).text.startswith("## Commits\n")


@pytest.mark.parametrize(
    "name", [b"a\nname: x\n.md", b"\xff\xfe.md", "\u202egnp.md".encode(), b"\x1b[2Jx.md", b"\x85.md"]
)
def test_the_name_of_a_prompt_is_kept_as_far_as_it_can_be_shown(cli: Cli, prompt: Path, name: bytes) -> None:
    os.rename(prompt, os.path.join(os.fsencode(cli.workspace), name))

    cli("split", os.fsdecode(name), "--out", "out")

    kept = json.loads((cli.workspace / "out/manifest.json").read_bytes())["source"]["name"]
    assert kept.isprintable()
    assert kept.endswith(".md")
    assert cli("split", "--verify", "out").text.endswith("byte for byte\n")


def test_no_line_of_a_prompt_commands_the_terminal(cli: Cli, prompt: Path) -> None:
    rule = "- You must\tnot \x1b[2J\x9b2J ring \x07 it."
    prompt.write_bytes(PROMPT.replace(b"## Reviews\n", f"## Reviews\n\n{rule}\n".encode()))

    said = cli("split", "PROMPT.md", "--out", "out").text
    edited("instructions/reviews.md", lambda text: text.replace(rule, ""))(cli.workspace / "out")
    lost = cli("split", "--verify", "out", code=7).text

    assert re.search(r"-> reviews: - You must +not \?\[2J\?2J ring \? it\.\n", said)
    assert "lost line 164: - You must" in lost
    assert (said + lost).replace("\n", "").isprintable()


# writing over what is there


def test_an_unchanged_split_is_replaced(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    cli("split", "PROMPT.md", "--out", "out", "--keep", "Reviews", "--budget", "5000")

    assert "## Reviews" in (cli.workspace / "out/prompts/system.md").read_text()
    assert not (cli.workspace / "out/instructions/reviews.md").exists()
    assert [path.name for path in cli.workspace.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "edit", ["instructions/reviews.md", "prompts/system.md", "instructions/mine.md", "source.md", "front matter"]
)
def test_an_edited_split_is_never_overwritten(cli: Cli, prompt: Path, edit: str) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    if edit == "front matter":
        edited("instructions/reviews.md", lambda text: text.replace("Use when", "Use only when"))(cli.workspace / "out")
    else:
        path = cli.workspace / "out" / edit
        path.write_bytes((path.read_bytes() if path.exists() else b"") + b"Mine.\n")
    before = {each: each.read_bytes() for each in (cli.workspace / "out").rglob("*.*")}

    said = cli("split", "PROMPT.md", "--out", "out", code=4).err

    assert "conflict: 'out' exists and is not an unchanged split" in said
    assert {each: each.read_bytes() for each in (cli.workspace / "out").rglob("*.*")} == before


EXTRAS = ["notes.txt", ".git/HEAD", "docs/x.md", "instructions/README.md", "prompts/other.md", "PROMPT.md", "empty/"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_file_beside_a_split_is_named_and_stays(cli: Cli, prompt: Path, extra: str) -> None:
    out = cli.workspace / "out"
    cli("split", "PROMPT.md", "--out", "out")
    (out / extra).parent.mkdir(exist_ok=True)
    if extra.endswith("/"):
        (out / extra).mkdir()
    else:
        (out / extra).write_bytes(b"Mine.")
    before = sorted(out.rglob("*"))

    said = cli("split", "PROMPT.md", "--out", "out", code=4).err

    named = extra if (out / extra).parent.name in {"instructions", "prompts"} else extra.partition("/")[0]
    assert f"conflict: 'out' exists and is not an unchanged split: added, edited or gone is {named!r};" in said
    assert sorted(out.rglob("*")) == before
    assert f"note: {named} was added after the split" in cli("split", "--verify", "out").text


def test_a_split_with_many_other_files_names_the_first_ones(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    for number in range(20):
        (cli.workspace / f"out/mine-{number:02}\n.txt").write_bytes(b"Mine.")

    said = cli("split", "PROMPT.md", "--out", "out", code=4).err

    assert "'mine-00?.txt', 'mine-01?.txt'" in said
    assert "'mine-09?.txt' and 10 more;" in said


@pytest.mark.parametrize("linked", ["source.md", "instructions", "instructions/reviews.md"])
def test_a_split_with_a_link_in_it_is_never_overwritten(cli: Cli, prompt: Path, linked: str) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    (cli.workspace / "out" / linked).rename(cli.workspace / "moved")
    (cli.workspace / "out" / linked).symlink_to(cli.workspace / "moved")

    assert f"is {linked!r};" in cli("split", "PROMPT.md", "--out", "out", code=4).err
    assert (cli.workspace / "out" / linked).is_symlink()


@pytest.mark.parametrize("damage", ["titles", "spaces"])
def test_a_split_with_an_edited_manifest_is_never_overwritten(cli: Cli, prompt: Path, damage: str) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    path = cli.workspace / "out/manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["pieces"][0]["titles"] = ["Commits" if damage == "spaces" else "Mine"]
    path.write_text(json.dumps(manifest))

    assert "is 'manifest.json';" in cli("split", "PROMPT.md", "--out", "out", code=4).err
    assert json.loads(path.read_bytes()) == manifest


def test_a_file_in_place_of_the_folder_stays(cli: Cli, prompt: Path) -> None:
    said = cli("split", "PROMPT.md", "--out", "PROMPT.md", code=4).err

    assert "conflict: 'PROMPT.md' is a file" in said
    assert prompt.read_bytes() == PROMPT


def test_a_folder_with_other_files_is_never_overwritten_but_an_empty_one_is_used(cli: Cli, prompt: Path) -> None:
    (cli.workspace / "full").mkdir()
    (cli.workspace / "full/keep.txt").write_text("mine")
    (cli.workspace / "empty").mkdir()

    cli("split", "PROMPT.md", "--out", "full", code=4)
    cli("split", "PROMPT.md", "--out", "empty")

    assert (cli.workspace / "full/keep.txt").read_text() == "mine"
    assert (cli.workspace / "empty/manifest.json").exists()


def test_a_split_goes_into_the_current_folder_and_through_a_link(cli: Cli, prompt: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (cli.workspace / "link").symlink_to(tmp_path / "target")
    (cli.workspace / "here").mkdir()
    cli("split", "PROMPT.md", "--out", "link")
    with contextlib.chdir(cli.workspace / "here"):
        cli("split", "../PROMPT.md", "--out", ".")
        cli("split", "../PROMPT.md", "--out", ".")
        assert cli("split", "--verify", ".").text.endswith("byte for byte\n")

    assert (cli.workspace / "link").is_symlink()
    assert (tmp_path / "target/manifest.json").exists()
    assert sorted(path.name for path in cli.workspace.iterdir()) == ["PROMPT.md", "here", "link"]


def test_a_folder_that_cannot_be_written_is_told(cli: Cli, prompt: Path) -> None:
    assert "unavailable: 'x' cannot be written" in cli("split", "PROMPT.md", "--out", "/proc/x", code=8).err


# what cannot be split


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("none.md", "--out", "out"), 2, "'none.md' is not a file"),
        ((".", "--out", "out"), 2, "'.' is not a file"),
        (("PROMPT.md",), 2, "no --out"),
        ((), 2, "no PROMPT"),
        (("PROMPT.md", "--verify", "out"), 2, "--verify with other arguments"),
        (("PROMPT.md", "--out", "out", "--keep", "Nothing"), 2, "there is no such heading"),
        (("PROMPT.md", "--out", "out", "--keep", "Commits", "--keep", "Reviews"), 2, "give --budget"),
        (("PROMPT.md", "--out", "out", "--budget", "1"), 2, "--budget is 1; at least 300"),
        (("--verify", "nowhere"), 3, "'nowhere' has no manifest.json"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    cli: Cli, prompt: Path, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    assert problem in cli("split", *arguments, code=code).err
    assert [path.name for path in cli.workspace.iterdir()] == ["PROMPT.md"]


# verify


def edited(file: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / file
        path.write_bytes(change(path.read_bytes().decode()).encode())

    return damage


def remanifested(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return damage


RULE = "- Always check a review twice.\n"
DAMAGES = {
    "a line deleted": (
        edited("instructions/reviews.md", lambda text: text.replace(RULE, "")),
        "lost line 166: " + RULE.strip(),
    ),
    "a line changed": (
        edited("instructions/reviews.md", lambda text: text.replace("twice", "once")),
        "lost line 166: ",
    ),
    "a word in the core": (
        edited("prompts/system.md", lambda text: text.replace("help", "hurt")),
        "lost line 3: You help",
    ),
    "line ends": (
        edited("instructions/commits.md", lambda text: text.replace("\n", "\r\n")),
        "its text is not the source's",
    ),
    "a file deleted": (
        lambda folder: (folder / "instructions/commits.md").unlink(),
        "instructions/commits.md: is not there any more",
    ),
    "an instruction emptied": (
        lambda folder: (folder / "instructions/commits.md").write_bytes(b""),
        "has no front matter",
    ),
    "front matter broken": (
        edited("instructions/commits.md", lambda text: text.replace("name:", "nam:", 1)),
        "field 'name' is missing",
    ),
    "an instruction renamed": (
        edited("instructions/commits.md", lambda text: text.replace('name: "commits"', "name: x")),
        "its tag was 'commits' and is 'x'",
    ),
    "the marker deleted": (
        edited("prompts/system.md", lambda text: text.replace("<!-- iris", "<!-- ")),
        "has no marker line",
    ),
    "the core deleted": (lambda folder: (folder / "prompts/system.md").unlink(), "prompts/system.md: "),
    "the copy changed": (edited("source.md", lambda text: text + "x"), "source.md: is not the prompt that was split"),
    "the copy deleted": (lambda folder: (folder / "source.md").unlink(), "source.md: cannot be read"),
    "a piece forgotten": (remanifested(lambda manifest: manifest["pieces"].pop()), "of the source are in no span"),
    "a span moved": (remanifested(lambda manifest: manifest["pieces"][0].update(start=3)), "are in two spans"),
    "a core span forgotten": (remanifested(lambda manifest: manifest["core"].pop()), "of the source are in no span"),
    "a digest changed": (
        remanifested(lambda manifest: manifest["pieces"][0].update(digest="sha256:" + "0" * 64)),
        "commits.md: its text",
    ),
    "a title changed": (
        remanifested(lambda manifest: manifest["pieces"][0].update(titles=["Mine"])),
        "manifest.json: was edited; take it back from Git",
    ),
    "the copy without end": (
        lambda folder: os.truncate(folder / "source.md", 10**12),
        "source.md: cannot be read",
    ),
    "a span that ends within a character": (
        remanifested(lambda manifest: manifest["core"][0].update(end=manifest["core"][0]["start"] + 3)),
        "  lost line 1: # \N{REPLACEMENT CHARACTER}",
    ),
    "the budget changed": (remanifested(lambda manifest: manifest.update(budget=1)), "manifest.json: was edited"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_verify_fails_on_every_kind_of_damage_and_names_it(cli: Cli, prompt: Path, kind: str) -> None:
    damage, named = DAMAGES[kind]
    cli("split", "PROMPT.md", "--out", "out")
    damage(cli.workspace / "out")

    said = cli("split", "--verify", "out", code=7).text

    assert named in said
    assert said.endswith("the files do not rebuild the source\n")
    assert cli("split", "--verify", "out", "--json", code=7).json["ok"] is False


def test_verify_names_what_was_lost_and_no_line_that_only_moved(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    moved = edited(
        "instructions/reviews.md", lambda text: text.replace("## Reviews\n", "").replace(RULE, "") + "## Reviews\n"
    )
    moved(cli.workspace / "out")

    (finding,) = cli("split", "--verify", "out", "--json", code=7).json["findings"]

    assert finding["lost"] == [{"line": 166, "text": RULE.strip()}]


def test_what_moved_to_another_file_is_not_lost(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    edited("instructions/reviews.md", lambda text: text.replace(RULE, ""))(cli.workspace / "out")
    edited("prompts/system.md", lambda text: RULE + text)(cli.workspace / "out")
    (cli.workspace / "out/instructions/commits.md").rename(cli.workspace / "out/instructions/renamed.md")

    found = cli("split", "--verify", "out", "--json", code=7).json["findings"]

    assert [each["lost"] for each in found] == [[], [], []]


def test_verify_notes_edited_front_matter_and_text_behind_the_marker_without_failing(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    edited("instructions/reviews.md", lambda text: text.replace("Use when", "Use only when"))(cli.workspace / "out")
    edited("prompts/system.md", lambda text: text + "More.\n")(cli.workspace / "out")

    assert cli("split", "--verify", "out", "--json").json["notes"] == [
        "the front matter of instructions/reviews.md was edited",
        "text was added to prompts/system.md",
    ]


def test_verify_notes_an_added_instruction_without_failing(cli: Cli, prompt: Path) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    (cli.workspace / "out/instructions/mine.md").write_text("---\nname: mine\ndescription: Mine.\n---\nMine.\n")

    assert "note: instructions/mine.md was added after the split" in cli("split", "--verify", "out").text


@pytest.mark.parametrize("file", ["instructions/\0.md", "../x.md", "/etc/passwd", "instructions/commits.md\n"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(cli: Cli, prompt: Path, file: str) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    remanifested(lambda manifest: manifest["pieces"][0].update(file=file))(cli.workspace / "out")

    assert "manifest.json is damaged: pieces.0.file" in cli("split", "--verify", "out", code=2).err
    assert "conflict: 'out' exists" in cli("split", "PROMPT.md", "--out", "out", code=4).err


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"format": 2}'])
def test_a_damaged_manifest_is_refused(cli: Cli, prompt: Path, content: bytes) -> None:
    cli("split", "PROMPT.md", "--out", "out")
    (cli.workspace / "out/manifest.json").write_bytes(content)

    assert "manifest.json is damaged" in cli("split", "--verify", "out", code=2).err
