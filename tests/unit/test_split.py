"""Where a prompt is cut, what stays in the core, and what the pieces say of themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from iris_kv.errors import InvalidArgumentError, TooLargeError
from iris_kv.instruction_file import (
    MAX_BODY_LINES,
    MAX_BODY_TOKENS,
    InstructionSource,
    check_file,
    over_limits,
    slug_of,
)
from iris_kv.instructions import Instruction, InstructionLibrary
from iris_kv.model import digest_of
from iris_kv.split import Plan, files_of, manifest_of, plan_split, report_of, verify_split, write_split
from iris_kv.tokens import TokenCounter

COUNTER = TokenCounter()
SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank. "


def prose(tokens: int) -> str:
    """Return about so many tokens of text on lines of 80 characters."""
    return (SENTENCE * (tokens // 14 + 1)).replace("bank. ", "bank.\n")


def planned(source: str | bytes, *keep: str, budget: int | None = None) -> Plan:
    raw = source if isinstance(source, bytes) else source.encode()
    return plan_split(raw, COUNTER, budget=budget, keep=keep)


def tags(plan: Plan) -> list[str]:
    return [each.tag for each in plan.instructions]


def bodies(plan: Plan) -> dict[str, str]:
    return {each.tag: plan.source[each.span.start : each.span.end].decode() for each in plan.instructions}


def core(plan: Plan) -> str:
    return "".join(plan.source[span.start : span.end].decode() for span in plan.core)


def rebuilt(plan: Plan) -> bytes:
    spans = sorted([*plan.core, *(each.span for each in plan.instructions)])
    assert [span.start for span in spans] == [0, *(span.end for span in spans)][:-1]
    return b"".join(plan.source[start:end] for start, end in spans)


LARGE = f"""# Assistant

You help people.

## Tone

Be kind.

## Git commits

Use this section when the user asks for a commit. See [Deploying](#deploying).

- NEVER push without being asked.
- Must sign every commit.

{prose(3_000)}
## Deploying

{prose(3_000)}
## Überprüfung

{prose(3_000)}
## 规则

{prose(3_000)}
## Deploying

{prose(3_000)}
"""


def test_what_comes_first_stays_and_each_section_becomes_an_instruction_of_its_name() -> None:
    plan = planned(LARGE)

    assert core(plan) == "# Assistant\n\nYou help people.\n\n## Tone\n\nBe kind.\n\n"
    assert tags(plan) == ["git_commits", "deploying", "section_3", "section_4", "deploying_2"]
    assert bodies(plan)["git_commits"].startswith("## Git commits\n\nUse this section when")
    assert rebuilt(plan) == LARGE.encode()


def test_a_piece_says_of_itself_when_to_use_it_and_its_two_rules() -> None:
    first, second, *_ = planned(LARGE).instructions

    assert first.description == "Use when the user asks for a commit (Git commits)."
    assert first.essentials == "NEVER push without being asked. Must sign every commit."
    assert second.description == f"Use when the task involves Deploying: {SENTENCE.strip()}"
    assert second.essentials == ""


def served(plan: Plan, folder: Path, name: str = "p.md") -> dict[str, Instruction]:
    """Return what a library serves of a split that was written; every piece must be in it as it was."""
    manifest = manifest_of(plan, name, COUNTER)
    write_split(folder / "out", list(files_of(plan, manifest)))
    source = InstructionSource(folder=folder / "out/instructions", origin="folder", label="out")
    library = InstructionLibrary([source], COUNTER)
    found = {each.tag: each for each in library.instructions}
    assert library.errors == ()
    assert {tag: each.body.decode() for tag, each in found.items()} == bodies(plan)
    assert verify_split(folder / "out").ok
    return found


NAMES = [
    "README",
    "readme",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "False",
    "null",
    "0xff",
    "1e5",
    "2024-01-01",
    "1_000",
    ".inf",
    "y",
]


def test_every_heading_gives_an_instruction_that_is_served(tmp_path: Path) -> None:
    source = f"# You\n\n{prose(2_000)}\n" + "".join(f"# {name}\n\n{prose(1_900)}\n" for name in NAMES)

    found = served(planned(source), tmp_path)

    assert {"readme_2", "readme_3", "yes", "true", "null"} <= found.keys()
    assert len(found) == len(NAMES)


def test_references_to_more_headings_than_the_front_matter_may_name_are_cut_at_a_tag(tmp_path: Path) -> None:
    names = [f"The chapter of many words about the number {number:03}" for number in range(150)]
    links = "".join(f"[x](#{slug_of(name)})\n" for name in names)
    source = f"# You\n\n{prose(2_000)}\n# Overview\n\n{links}\n" + "".join(
        f"# {name}\n\n{SENTENCE * 12}\n" for name in names
    )

    found = served(planned(source), tmp_path)

    named = found["overview"].references.split(", ")
    assert 50 < len(named) < 150
    assert set(named) <= found.keys()
    assert len(found["overview"].references) <= 4_096


def said_of(text: str) -> tuple[str, str]:
    """Return the description and the essentials of an instruction `Topic` with this text."""
    *_, last = planned(f"# You\n\n{prose(2_900)}\n# Topic\n\n{text}\n\n{prose(1_900)}").instructions
    return last.description, last.essentials


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("Use this whenever the build is red.", "the build is red (Topic)."),
        ("Do not use this when the user asks for a commit.", "the task involves Topic: Do not use this when"),
        ("You should never, ever, answer when the user is away.", "the task involves Topic: You should never"),
        ("Don\u2019t use it if the build is red. Use it if the build is green.", "the build is green (Topic)."),
    ],
)
def test_when_to_use_a_piece_is_never_when_not_to_use_it(text: str, when: str) -> None:
    assert said_of(text)[0].startswith(f"Use when {when}")


def test_rules_keep_their_code_and_the_names_of_tags() -> None:
    text = "- NEVER *edit* `__init__.py` or `*.env` **by `hand`**.\n- Always answer in <answer> tags,<br> <b>not</b> others."

    assert said_of(text)[1] == ("NEVER edit __init__.py or *.env by hand. Always answer in <answer> tags, not others.")


def test_the_same_source_gives_the_same_plan() -> None:
    assert planned(LARGE) == planned(LARGE)


def test_the_rendered_core_is_within_its_budget() -> None:
    for budget in (300, 1_000, 3_000, 6_000):
        plan = planned(LARGE, budget=budget)
        assert COUNTER.count(plan.rendered()) <= budget, budget
        assert rebuilt(plan) == LARGE.encode()


def test_a_large_prompt_keeps_at_most_12_percent_by_itself() -> None:
    source = "".join(f"## Part {number}\n\n{prose(300)}\n" for number in range(100))

    plan = planned(source)

    assert len(source) > 100_000
    assert COUNTER.count(plan.rendered()) <= 0.12 * COUNTER.count(source)
    assert plan_split(source.encode(), COUNTER, budget=5_000).budget == 5_000


def test_a_kept_section_stays_in_the_core_before_what_stands_earlier() -> None:
    plan = planned(LARGE, "Überprüfung", budget=4_000)

    assert "## Überprüfung" in core(plan)
    assert "## Git commits" not in core(plan)
    assert rebuilt(plan) == LARGE.encode()
    assert "## Überprüfung" in plan.rendered()


def test_keeping_takes_a_title_or_its_slug_and_every_section_of_that_title() -> None:
    by_title, by_slug = planned(LARGE, "Deploying", budget=9_000), planned(LARGE, "deploying", budget=9_000)

    assert by_title.core == by_slug.core
    assert core(by_title).count("## Deploying") == 2


def test_what_cannot_be_kept_is_refused_with_the_figures() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"it takes [\d,]+ tokens.*at most 3,000.*give --budget (\d+)"
    ) as told:
        planned(LARGE, "Deploying")

    enough = int(told.value.todo.split()[2].rstrip(","))
    assert COUNTER.count(planned(LARGE, "Deploying", budget=enough).rendered()) <= enough


def test_the_budget_that_is_suggested_is_enough_for_a_long_trigger_table() -> None:
    source = f"# Kept\n\n{prose(290)}\n" + "".join(
        f"# Kind {n} of task with a long name\n\nUse this when {SENTENCE}\n\n{prose(1_900)}\n" for n in range(30)
    )
    with pytest.raises(InvalidArgumentError, match=r"give --budget \d+") as told:
        planned(source, "Kept", budget=300)

    enough = int(told.value.todo.split()[2].rstrip(","))
    assert core(planned(source, "Kept", budget=enough)).startswith("# Kept")


def test_a_heading_inside_short_lines_of_tags_can_be_kept() -> None:
    source = f"# You\n\n{prose(2_500)}\n<rules>\nFirst.\n\n## Tone\n\nBe kind.\n\n## Rest\n\n{prose(1_500)}</rules>\n"

    assert tags(planned(source)) == ["rules"]
    assert "## Tone\n\nBe kind.\n" in core(planned(source, "tone"))
    assert rebuilt(planned(source, "tone")) == source.encode()


@pytest.mark.parametrize("head", ["## Links", "Links\n-----"])
def test_a_heading_stays_one_over_definitions_of_links(head: str) -> None:
    source = (
        f"# You\n\n{prose(2_900)}\n{head}\n[a]: http://a\n[b]: http://b\n\n{prose(1_500)}\n# Next\n\n{prose(3_000)}\n"
    )

    assert tags(planned(source)) == ["links", "next"]


@pytest.mark.parametrize("text", ["You are *kind*: {so.", "- a\n- b", "Be kind."])
def test_a_rule_at_the_top_is_no_front_matter(text: str) -> None:
    source = f"---\n{text}\n\n# One\n\n{prose(2_000)}\n\n---\n\n# Two\n\n{prose(2_000)}\n"

    assert tags(planned(source, budget=300)) == ["one", "two"]


def test_an_unknown_heading_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidArgumentError, match="no such heading; the headings are 'Git commits', 'Assistant'"):
        planned(LARGE, "git")


@pytest.mark.parametrize(
    "hidden",
    [
        "```sh\n# not a heading\n\nNot a heading\n====\n```\n",
        "~~~\n## not a heading\n~~~\n",
        "- an item\n\n  # not a heading\n\n  Not one\n  ---\n",
        "> # not a heading\n",
        "| a | b |\n|---|---|\n| # not | a heading |\n",
        "    # not a heading\n",
        "<!--\n# not a heading\n-->\n",
    ],
)
def test_what_looks_like_a_heading_inside_a_block_is_none(hidden: str) -> None:
    source = f"# First\n\n{prose(2_000)}\n{hidden}\n{prose(1_000)}\n# Second\n\n{prose(3_000)}\n"

    plan = planned(source)

    assert all(hidden in text or "not a heading" not in text for text in [core(plan), *bodies(plan).values()])
    assert not [tag for tag in tags(plan) if tag.startswith("not")]
    assert rebuilt(plan) == source.encode()


def test_setext_headings_cut_as_well() -> None:
    source = f"Prompt\n======\n\n{prose(2_800)}\nSecond part\n-----------\n\n{prose(3_000)}\n"

    assert tags(planned(source))[-1] == "second_part"


def test_lines_of_tags_keep_together_what_stands_between_them() -> None:
    source = (
        "You are an agent.\n<making_changes>\n# Rules\n\nDo it.\n\n"
        + prose(2_000)
        + "\n## More\n\n"
        + prose(1_000)
        + "</making_changes>\n<searching>\n"
        + prose(2_000)
        + "</searching>\n"
    )

    plan = planned(source)

    assert tags(plan) == ["making_changes", "searching"]
    assert bodies(plan)["making_changes"].startswith("<making_changes>\n# Rules")
    assert bodies(plan)["making_changes"].endswith("</making_changes>\n")


CLOSED = {
    "a fence": "```sh\n# no heading\n\n# none\n```\n",
    "a list": "- Do it.\n- Do more.\n",
    "a heading": "# Inner\nDo it.\n",
    "a quote": "> Do it.\n",
    "a table": "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "a fence in an item": "- Do it.\n  ```\n  </rules>\n  ```\n",
    "a tag in an item": "- Do it:\n  <rules>\n  Or not.\n  </rules>\n- Do more.\n",
    "a tag in a fence": "~~~\n</rules>\n\n</rules>\n~~~\n",
    "a tag in a comment": "<!--\n</rules>\n\n# none\n-->\n",
    "a tag in pre": "<pre>\n</rules>\n\n# none\n</pre>\n",
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", CLOSED)
def test_a_tags_line_stands_alone_whatever_is_next_to_it(kind: str, newline: str) -> None:
    inner = CLOSED[kind]
    source = (
        f"# You\n\n{prose(2_200)}\n<rules>\n{inner}{prose(1_900)}{inner}</rules>\n"
        f"# Next\n\n{prose(3_000)}\n<rules>\n{inner}</rules>\n```\n# none\n\n# none\n```\n"
    ).replace("\n", newline)

    plan = planned(source)

    assert tags(plan)[:2] == ["rules", "next"]
    assert not [tag for tag in tags(plan) if tag.startswith("no")]
    assert bodies(plan)["rules"].startswith("<rules>")
    assert bodies(plan)["rules"].endswith(f"</rules>{newline}")
    assert rebuilt(plan) == source.encode()


def test_a_pair_of_tags_around_everything_is_opened() -> None:
    source = f"<system>\nHello.\n\n# One\n\n{prose(3_000)}\n# Two\n\n{prose(3_000)}</system>\n"

    plan = planned(source)

    assert tags(plan) == ["one", "two"]
    assert bodies(plan)["two"].endswith("</system>\n")
    assert rebuilt(plan) == source.encode()


def test_every_byte_survives_in_its_piece() -> None:
    odd = "\r\n# Odd {{x}} {% raw %}\r\n\r\n<!-- iris:instructions -->\r\n{{ y }}\t\x0b\u2028é\u0301🙂\r\n".encode()
    source = (
        b"\xef\xbb\xbf# Top\r\n\r\nIntro.\r\n" + prose(3_200).encode() + odd + prose(9_000).encode() + b"no line end"
    )

    plan = planned(source)

    assert rebuilt(plan) == source
    assert any(
        b"<!-- iris:instructions -->\r\n{{ y }}" in source[each.span.start : each.span.end]
        for each in plan.instructions
    )
    for name, raw in files_of(plan, manifest_of(plan, "p.md", COUNTER)):
        if name.startswith("instructions/"):
            checked = check_file(InstructionSource(folder=".", origin="folder", label="."), name, raw)
            assert checked.problems == ()
            assert checked.body in source


def test_long_text_without_headings_is_cut_between_paragraphs_lines_and_sentences() -> None:
    for source in (
        "\n".join(prose(200) for _ in range(60)),
        prose(20_000),
        prose(20_000).replace("\n", " "),
        "é" * 40_000,
        "x" * 100_000 + "\n",
    ):
        plan = planned(source)

        assert rebuilt(plan) == source.encode()
        assert tags(plan) == [f"section_{number}" for number in range(1, len(plan.instructions) + 1)]
        assert all(COUNTER.count(text) <= MAX_BODY_TOKENS for text in bodies(plan).values())
        assert all(text.count("\n") <= MAX_BODY_LINES for text in bodies(plan).values())


def test_a_long_list_is_cut_between_its_items_and_a_fence_nowhere() -> None:
    items = "".join(f"- Item {number}: {SENTENCE}{SENTENCE}\n  - inner {SENTENCE}\n" for number in range(300))
    fence = "```\n" + prose(5_000) + "```\n"

    listed = planned(f"# Things\n\n{items}")
    fenced = planned(f"# Code\n\n{prose(2_900)}\n## Example\n\n{fence}")

    texts = bodies(listed)
    assert len(texts) > 2
    assert all(
        COUNTER.count(text) <= MAX_BODY_TOKENS and text.endswith(f"inner {SENTENCE}\n") for text in texts.values()
    )
    assert all(re.match(r"(# Things\n\n)?- Item", text) for text in texts.values())
    assert bodies(fenced)["example"] == "## Example\n\n" + fence
    report = report_of(
        fenced, manifest_of(fenced, "p.md", COUNTER), COUNTER, tool_tokens=0, deferred_tool_tokens=0 // 10
    )
    assert report.oversized == ("example",)


def test_a_front_matter_of_the_prompt_stays_in_the_core() -> None:
    source = f"---\nname: x\ndescription: y\n---\n# One\n\n{prose(3_000)}\n# Two\n\n{prose(3_000)}\n"

    plan = planned(source)

    assert core(plan).startswith("---\nname: x\ndescription: y\n---\n")
    assert tags(plan) == ["one", "two"]


def test_small_sections_are_read_together_and_say_both_names() -> None:
    small = "".join(f"### Topic {name}\n\n{prose(250)}\n" for name in "abcdefghijklmnopqrs")
    chapters = "".join(f"## Chapter {name}\n\n{prose(250)}\n" for name in "ab")
    plan = planned(f"# All\n\n{prose(2_600)}\n## Topics\n\n{small}\n## Rest\n\n{prose(9_000)}\n{chapters}")

    merged = next(each for each in plan.instructions if each.tag == "topic_a")
    assert merged.titles[:2] == ("Topic a", "Topic b")
    assert "Topic a; Topic b in Topics" in merged.description
    assert tags(plan)[-2:] == ["chapter_a", "chapter_b"]


def test_lines_of_tags_are_named_by_what_tells_them_apart() -> None:
    steps = "".join(f'<step name="{name}">\n{prose(2_000)}</step>\n' for name in ("parse args", "plan", "write"))

    assert tags(planned(f"# Workflow\n\n{steps}"))[-2:] == ["plan", "write"]


def test_a_long_section_stays_out_of_the_core_where_that_has_text_already() -> None:
    parts = "".join(f"### Part {name}\n\n{prose(900)}\n" for name in "abcdef")
    source = f"# You\n\n{prose(800)}\n## First\n\n{parts}\n## Second\n\n{prose(9_000)}\n"

    assert core(planned(source)) == f"# You\n\n{prose(800)}\n"


def test_paths_and_common_words_are_no_references() -> None:
    source = (
        f"# Guide\n\n## Work\n\nSee references/foo.md and follow the rules. See the Rules section, then section 9, and"
        f" section 10.\n\n{prose(3_000)}\n## References\n\n{prose(3_000)}\n## Rules\n\n{prose(3_000)}\n"
        f"## 9. Nine\n\n{prose(3_000)}\n## 10. Ten\n\n{prose(3_000)}\n"
    )

    manifest = manifest_of(planned(source, budget=400), "p.md", COUNTER)

    assert [each.heading for each in manifest.pieces[0].references] == ["Rules", "9. Nine", "10. Ten"]


def test_a_rule_on_a_line_that_was_cut_is_found_in_every_piece() -> None:
    plan = planned("You must be kind. " * 3_000)
    report = report_of(plan, manifest_of(plan, "p.md", COUNTER), COUNTER, tool_tokens=0, deferred_tool_tokens=0)

    assert {rule.tag for rule in report.moved_rules} == set(tags(plan))


def test_the_report_says_how_many_instructions_a_model_is_told_of() -> None:
    source = "".join(f"# Kind {n}: of task\n\n{prose(2_000)}\n" for n in range(150))
    plan = planned(source)
    report = report_of(plan, manifest_of(plan, "p.md", COUNTER), COUNTER, tool_tokens=0, deferred_tool_tokens=0)

    told = sum(
        f"{tag}" in plan.rendered().split("## Instructions")[1].replace(",", " ").replace(":", " ").split()
        for tag in tags(plan)
    )
    assert report.triggers.described == told
    assert 0 < report.triggers.at_the_start < report.triggers.described <= len(plan.instructions)


def test_references_are_listed_and_nothing_is_rewritten() -> None:
    source = (
        f"# Guide\n\nRefer to the Release notes section.\n\n## 1. Setup\n\nSee section 2.1 and [notes](#release-notes).\n\n"
        f"{prose(2_000)}\n## 2. Work\n\n{prose(2_000)}\n### 2.1 Tests\n\n{prose(1_800)}\n## Release notes\n\n{prose(1_800)}\n"
    )

    plan = planned(source, budget=600)
    manifest = manifest_of(plan, "p.md", COUNTER)

    by_tag = {piece.tag: piece for piece in manifest.pieces}
    assert [(each.heading, each.tag) for each in by_tag["setup"].references] == [
        ("2.1 Tests", "tests"),
        ("Release notes", "release_notes"),
    ]
    assert [(each.heading, each.tag) for each in manifest.core_references] == [("Release notes", "release_notes")]
    front = dict(files_of(plan, manifest))["instructions/setup.md"].decode()
    assert '  references: "tests, release_notes"\n' in front
    start = by_tag["setup"].references[0].start
    assert source.encode()[start:].startswith(b"section 2.1")


def referred(*sentences: str, headings: str) -> list[str]:
    """Return the headings that the sentences refer to, each of which is in an instruction of its own."""
    sections = "".join(f"## {name}\n\n{prose(3_000)}\n" for name in headings.split(", "))
    plan = planned("# Guide\n\n" + "\n\n".join(sentences) + f"\n\n{sections}", budget=400)
    return [each.heading for each in manifest_of(plan, "p.md", COUNTER).core_references]


def test_numbers_refer_to_sections_only_behind_a_word_for_one() -> None:
    headings = "1. One, 2. Two, 3. Three, 4. Four"

    assert referred("Answer under 2 minutes, 3 per 4 seconds, see 1 of them.", headings=headings) == []
    assert referred("Sections 2, 3 and 4 hold.", headings=headings) == ["2. Two", "3. Three", "4. Four"]
    assert referred("By chapter 1, or by\n§ 3.", headings=headings) == ["1. One", "3. Three"]


def test_a_reference_goes_on_in_the_next_line_but_not_behind_an_empty_one() -> None:
    headings = "Release notes, Long tests"

    assert referred("Then follow the\nRelease notes.", headings=headings) == ["Release notes"]
    assert referred("Now see:", "Release notes hold.", headings=headings) == []


def test_links_to_headings_of_one_title_are_told_apart() -> None:
    plan = planned("# Guide\n\n[2](#x-1) [1](#x) [3](#x-2)\n\n" + f"## X\n\n{prose(3_000)}\n" * 3, budget=400)

    assert [each.tag for each in manifest_of(plan, "p.md", COUNTER).core_references] == ["x_2", "x", "x_3"]


def test_hostile_references_take_no_time() -> None:
    for text in ("see" + "\n \n" * 9_000, "see " * 9_000, "see`" + "\n" * 9_000, "[" * 60_000, "[\n" * 9_000):
        source = f"# You\n\n{text}\n\n# See\n\n{prose(3_000)}"
        assert manifest_of(planned(source), "p.md", COUNTER).source.bytes == len(source)


def test_the_manifest_holds_each_span_and_its_digest() -> None:
    plan = planned(LARGE)
    manifest = manifest_of(plan, "prompt.md", COUNTER)

    for piece in manifest.pieces:
        assert piece.digest == digest_of(LARGE.encode()[piece.start : piece.end])
    files = dict(files_of(plan, manifest))
    for span in manifest.core:
        assert files["prompts/system.md"][span.at :].startswith(LARGE.encode()[span.start : span.end])
    assert files["source.md"] == LARGE.encode()


def test_the_report_names_every_rule_that_left_the_core_and_where_it_went() -> None:
    plan = planned(LARGE + "\n```\nnever in code\n```\n")
    report = report_of(
        plan, manifest_of(plan, "p.md", COUNTER), COUNTER, tool_tokens=950, deferred_tool_tokens=950 // 10
    )

    assert [(rule.line, rule.text, rule.tag) for rule in report.moved_rules] == [
        (13, "- NEVER push without being asked.", "git_commits"),
        (14, "- Must sign every commit.", "git_commits"),
        (LARGE.count("\n") + 3, "never in code", "deploying_2"),
    ]
    assert report.covered_bytes == report.source_bytes
    assert report.standing_tokens == report.core_tokens + report.server_tokens + 950
    assert report.deferred_standing_tokens == report.core_tokens + report.server_tokens + 95
    assert report.break_even_reads == (report.tokens_before - report.standing_tokens) // report.read_tokens
    assert report.pays


def test_a_prompt_that_is_too_small_to_pay_says_so() -> None:
    plan = planned("# Small\n\nDo it.\n\n## More\n\nAlways.\n")
    report = report_of(
        plan, manifest_of(plan, "p.md", COUNTER), COUNTER, tool_tokens=950, deferred_tool_tokens=950 // 10
    )

    assert plan.instructions == ()
    assert plan.rendered() == "# Small\n\nDo it.\n\n## More\n\nAlways.\n\n\n"
    assert not report.pays
    assert report.break_even_tokens > report.tokens_before
    assert report.moved_rules == ()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (b"", "the prompt is empty"),
        (b"\xef\xbb\xbf \r\n\t\n", "the prompt is empty"),
        (b"# A\n\xff", "byte 4 of the prompt is not UTF-8"),
        ("# A\n\nhide \u202e this\n".encode(), r"the prompt's line 3 has U\+202E"),
        (b"a\0b", r"the prompt's line 1 has U\+0000"),
    ],
)
def test_what_cannot_be_split_is_refused(source: bytes, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        planned(source)


def test_a_prompt_over_5_megabytes_is_refused() -> None:
    with pytest.raises(TooLargeError, match="5,000,001 bytes; at most 5,000,000"):
        planned(b"x" * 5_000_001)


@pytest.mark.parametrize(
    "source",
    [
        "[a]: http://x\n" * 3_000,
        "\n" * 50 + "x",
        "---\nname: x\n---\n\n" + "[a]: http://x\n" * 3_000,
        "x" + "\n" * 9_000,
        "\n" * 9_000 + "x" * 20_000,
        "\x0c\n" * 3_000 + SENTENCE * 800 + "\n\n" + "\x0c\n" * 3_000,
        f"# One\n\n{SENTENCE * 190}\n\n\x0c\n\n{SENTENCE * 249}\n\n\x0b\n\n{SENTENCE * 249}\n\n\x0c\n",
    ],
)
def test_a_text_that_markdown_sees_no_block_in_is_split_and_served(source: str, tmp_path: Path) -> None:
    assert rebuilt(planned(source, budget=300)) == source.encode()
    served(planned(source, budget=300), tmp_path)


def test_a_heading_and_the_longest_block_under_it_are_within_the_limits() -> None:
    for words in range(248, 254):
        texts = bodies(
            planned(f"# You\n\n{prose(2_900)}\n## Part of it\n\n{SENTENCE * words}\n\n# Next\n\n{prose(3_000)}")
        )
        assert all(COUNTER.count(text) <= MAX_BODY_TOKENS for text in texts.values()), words
    for lines in range(495, 503):
        texts = bodies(
            planned(f"# You\n\n{prose(2_900)}\n## Part of it\n\n" + "a\n" * lines + f"\n# Next\n\n{prose(3_000)}")
        )
        assert not [each for text in texts.values() for each in over_limits(text.encode(), 0)], lines


def test_a_budget_of_any_size_gives_a_core_that_is_served(tmp_path: Path) -> None:
    plan = planned(LARGE, budget=1_000_000)

    assert plan.instructions == ()
    assert served(plan, tmp_path) == {}


def test_a_core_that_is_too_large_to_serve_is_refused() -> None:
    with pytest.raises(TooLargeError, match=r"the core would have 5,000,0\d\d bytes; .* give a smaller --budget"):
        planned(b"x" * 4_999_990 + b"\n", budget=5_000_000)


def test_a_budget_that_holds_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="--budget is 10; at least 300"):
        planned(LARGE, budget=10)


def test_hostile_tags_and_headings_take_no_time() -> None:
    for source in (
        "<a>\n\n" * 4_000 + "</b>\n\n" * 4_000,
        "<a>\n" * 4_000 + "</a>\n" * 4_000,
        "# x\n" * 5_000,
        "- " * 50_000,
        "- a\n" * 5_000,
        "".join(f"# Part {n}\n\n" for n in range(500)) + "".join(f"see Part {n} x.\n\n" for n in range(500)),
        "> " * 20_000 + "x",
        "[" * 50_000,
    ):
        assert rebuilt(planned(source)) == source.encode()
