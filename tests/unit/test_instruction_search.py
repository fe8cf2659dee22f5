"""The search of instructions: what a model asks in its own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from iris_kv.instruction_search import best_matches
from iris_kv.instructions import InstructionLibrary, InstructionSource

FILES = {
    "browser": ("Automates a browser.", "# Browser\n\n## Wait for elements\n\nOpen the login page, then wait.\n"),
    "component-tests": ("Writes tests of components.", "# Components\n\nRender the button, click it.\n"),
    "slack": ("Reads and writes chat.", "# Chat\n\n## Threads\n\nAnswer in the thread. Escalate P1 at once.\n"),
    "pull-requests": ("Reviews changes.", "# Review\n\nYou MUST NOT merge your own pull request.\n"),
    "eskalation": ("Eskalation auf Deutsch.", "# Störungen\n\nDie Straße ist gesperrt. 規則を守る。\n"),
    **{f"filler-{n}": ("Other things.", "# Other\n\nThe page of the other things for the day.\n") for n in range(8)},
}


@pytest.fixture
def library(tmp_path: Path) -> InstructionLibrary:
    for name, (description, body) in FILES.items():
        (tmp_path / f"{name}.md").write_text(f"---\nname: {name}\ndescription: {description}\n---\n{body}")
    return InstructionLibrary([InstructionSource(folder=tmp_path, origin="folder", label="f")])


@pytest.mark.parametrize(
    ("query", "tag"),
    [
        ("slack", "slack"),
        ("SLACK!", "slack"),
        ("test the login page", "browser"),
        ("write component tests for the button", "component_tests"),
        ("browser login", "browser"),
        ("merge pull request", "pull_requests"),
        ("pull-requests", "pull_requests"),
        ("P1 escalation", "slack"),
        ("strasse", "eskalation"),
        ("規則", "eskalation"),
        ("störung", "eskalation"),
    ],
)
def test_the_words_of_a_task_find_its_instruction(library: InstructionLibrary, query: str, tag: str) -> None:
    assert tag in [match.instruction.tag for match in best_matches(library.instructions, query)][:2]


def test_common_words_find_nothing_besides_what_a_rare_one_finds(library: InstructionLibrary) -> None:
    found = [match.instruction.tag for match in best_matches(library.instructions, "the browser of the day")]

    assert found[0] == "browser"
    assert len(found) <= 10


def test_the_sections_that_a_query_hits_are_named(library: InstructionLibrary) -> None:
    assert best_matches(library.instructions, "wait for the browser")[0].sections == ("browser", "wait-for-elements")


def test_no_word_anywhere_finds_nothing_and_no_word_at_all_everything(library: InstructionLibrary) -> None:
    assert best_matches(library.instructions, "zebra xylophone") == []
    assert len(best_matches(library.instructions, " ?! ")) == len(FILES)
    assert best_matches((), "slack") == []


def test_a_very_long_query_is_answered(library: InstructionLibrary) -> None:
    assert best_matches(library.instructions, "slack " + "word " * 100_000)[0].instruction.tag == "slack"
