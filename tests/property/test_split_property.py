"""A split of any Markdown rebuilds it, cuts no block that must stay whole, and keeps to its budget."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from iris_kv.instruction_file import InstructionSource, check_file
from iris_kv.split import files_of, manifest_of, plan_split, verify_split, write_split
from iris_kv.tokens import TokenCounter

COUNTER = TokenCounter(exact=False)
"""The estimate: the property holds for any counter, and this one needs nothing installed."""
BUDGET = 500
WORDS = [
    "Deploy",
    "the",
    "Rules",
    "must",
    "never",
    "see",
    "section",
    "1.2",
    "über",
    "规则",
    "{{x}}",
    "{%",
    "raw",
    "%}",
    "`code`",
    "**bold**",
    "[to](#rules)",
    "🙂",
]

words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
paragraphs = st.lists(words, min_size=1, max_size=40).map("\n".join)
headings = st.one_of(
    st.builds("{0} {1}".format, st.sampled_from(["#", "##", "###", "######"]), words),
    st.builds("{0}\n{1}".format, words, st.sampled_from(["===", "-----"])),
)
fences = st.builds("{0}{1}\n# no heading\n\n{2}\n{0}".format, st.sampled_from(["```", "~~~~"]), words, paragraphs)
lists = st.lists(words, min_size=1, max_size=120).map(
    lambda items: "\n".join(f"- {item}\n  ## no heading" for item in items)
)
tables = st.lists(words, min_size=1, max_size=60).map(
    lambda rows: "| a | b |\n|---|---|\n" + "\n".join(f"| {row} | # no |" for row in rows)
)
pairs = st.builds(
    "<{0}>\n{1}\n\n{2}\n</{0}>".format, st.sampled_from(["rules", "example", "div"]), headings, paragraphs
)
oddities = st.sampled_from(
    ["<!-- iris:instructions -->", "---", "<open>", "</close>", "    indented", "> # quoted", "\t", "\x0b"]
)
parts = st.one_of(headings, headings, paragraphs, fences, lists, tables, pairs, oddities)
documents = st.builds(
    lambda bom, front, body, end, newline: (bom + front + "\n\n".join(body) + end).replace("\n", newline).encode(),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["", "---\nname: x\n---\n"]),
    st.lists(parts, min_size=1, max_size=25),
    st.sampled_from(["", "\n", "\n\n\n"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
).filter(lambda source: bool(source.decode().strip("\ufeff \t\r\n")))


def uncut(source: bytes) -> list[tuple[int, int]]:
    """Return the lines, as byte spans, of top-level fences and tables, by an independent reading."""
    lines = [0, *(match.end() for match in re.finditer(rb"\r\n?|\n", source))]
    tokens = MarkdownIt("commonmark").enable("table").parse(source.decode())
    spans = [each.map for each in tokens if each.level == 0 and each.map and each.type in {"fence", "table_open"}]
    return [(lines[first], lines[last] if last < len(lines) else len(source)) for first, last in spans]


@given(documents)
@settings(deadline=None, max_examples=150)
def test_a_split_rebuilds_its_source_and_cuts_no_fence_or_table(source: bytes) -> None:
    plan = plan_split(source, COUNTER, budget=BUDGET)

    spans = sorted([*plan.core, *(each.span for each in plan.instructions)])
    assert b"".join(source[start:end] for start, end in spans) == source
    assert COUNTER.count(plan.rendered()) <= BUDGET
    cuts = [span.start for span in spans]
    assert not [(cut, block) for cut in cuts for block in uncut(source) if block[0] < cut < block[1]]
    tags = [each.tag for each in plan.instructions]
    assert len(set(tags)) == len(tags)


@given(documents)
@settings(deadline=None, max_examples=40)
def test_what_is_written_is_served_and_verified(source: bytes) -> None:
    plan = plan_split(source, COUNTER, budget=BUDGET)
    manifest = manifest_of(plan, "prompt.md", COUNTER)
    files = dict(files_of(plan, manifest))

    for piece in manifest.pieces:
        checked = check_file(
            InstructionSource(folder=Path(), origin="folder", label="."), piece.file, files[piece.file]
        )
        assert checked.problems == ()
        assert checked.body == source[piece.start : piece.end]
        assert checked.fields is not None
        assert checked.fields["tag"] == piece.tag
        assert checked.fields["description"].startswith("Use when ")
    with TemporaryDirectory() as folder:
        write_split(Path(folder) / "out", list(files.items()))
        found = verify_split(Path(folder) / "out")
    assert (found.ok, found.findings, found.rebuilt_bytes) == (True, (), len(source))
