"""The verbs on kept versions: what they print, and how they end."""

from __future__ import annotations

import json
import re

import pytest
from tests.surfaces.test_cli_verbs import Cli, digest, isolated_cli

cli = pytest.fixture(isolated_cli)


def without_times(text: str) -> list[str]:
    return re.sub(r"20\d\d-\d\d-\d\dT[0-9:.]+Z", "AT", text).splitlines()


def test_history_shows_the_live_version_and_the_kept_ones_newest_first(cli: Cli) -> None:
    for value in ("one", "two!", "three"):
        cli("put", "project", "k", value)

    text = without_times(cli("history", "project", "k").text)
    data = cli("history", "project", "k", "--json").json

    assert text == [
        f"version 3, live: project 'k' 5 B text/plain {digest(b'three')[:23]} by user via cli, expires never",
        f"version 2, replaced AT: project 'k' 4 B text/plain {digest(b'two!')[:23]} by user via cli, expires never",
        f"version 1, replaced AT: project 'k' 3 B text/plain {digest(b'one')[:23]} by user via cli, expires never",
    ]
    assert data["live"]["digest"] == digest(b"three")
    assert [(each["version"], each["replaced_by"], each["kept_until"]) for each in data["kept"]] == [
        (2, "update", None),
        (1, "update", None),
    ]


def test_a_put_a_delete_and_a_clear_are_undone(cli: Cli) -> None:
    cli("put", "project", "k", "one", "--metadata", "n=1")
    cli("put", "project", "k", "two")

    assert cli("restore-entry", "project", "k").text.startswith("restored project 'k' 3 B text/plain sha256:")
    assert cli("get", "project", "k").out == b"one"
    cli("delete", "project", "k")
    cli("put", "project", "other", "x")
    cli("clear", "project", "--yes")
    deleted = without_times(cli("history", "project").text)
    assert [line.split(": project")[0] for line in deleted] == [
        "version 3, deleted AT, kept until AT",
        "version 1, deleted AT, kept until AT",
    ]
    assert [each["key"] for each in cli("history", "project", "--json").json] == ["k", "other"]
    info = cli("restore-entry", "project", "k", "--version", "3", "--json").json
    assert (info["version"], info["metadata"]) == (4, {"n": "1"})
    assert cli("restore-entry", "project", "k", "--version", "2", "--if-digest", digest(b"one")).text
    assert cli("get", "project", "k").out == b"two"
    cli("restore-entry", "project", "other")
    assert cli("history", "project").text == "nothing that was deleted from project is kept\n"
    assert cli("history", "project", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("history", "project", "none"), 3, "not_found: no entry 'none' in project"),
        (("history", "bogus"), 2, "invalid_argument: "),
        (("history", "project", ""), 2, "invalid_argument: the key is empty"),
        (
            ("restore-entry", "project", "none"),
            3,
            "not_found: no version of 'none' in project is kept; nothing is kept",
        ),
        (
            ("restore-entry", "project", "k", "--version", "9"),
            3,
            "no version 9 of 'k' in project is kept; kept are 1; take",
        ),
        (("restore-entry", "project", "k", "--if-digest", ""), 4, "conflict: "),
        (("restore-entry", "project", "k", "--if-digest", "x"), 2, "invalid_argument: "),
        (("restore-entry", "instructions", "research"), 6, "read_only: "),
    ],
    ids=str,
)
def test_what_cannot_be_ends_with_its_code(cli: Cli, arguments: tuple[str, ...], code: int, told: str) -> None:
    for value in ("one", "two"):
        cli("put", "project", "k", value)

    assert told in cli(*arguments, code=code).err
    error = json.loads(cli(*arguments, "--json", code=code).err)["error"]
    assert set(error) == {"code", "wrong", "allowed", "todo"}
    assert cli("get", "project", "k").out == b"two"


def test_a_quota_that_shrank_and_a_damaged_version_end_with_their_codes(cli: Cli) -> None:
    cli("put", "project", "k", "x" * 2_000)
    cli("put", "project", "k", "y")
    cli.configure("[scopes.project]\nquota_mb = 0.001\n")
    assert "too_large: " in cli("restore-entry", "project", "k", code=5).err
    cli.configure("")
    (kept,) = [path for path in (cli.workspace / ".iris/kv-cache/project").glob("k__*") if path.stat().st_size > 1]
    kept.write_bytes(b"z" * 2_000)

    assert "verified 1 entries (1 B) and 1 kept versions, 1 damaged" in cli("verify", code=7).text
    assert cli("verify").text == "verified 1 entries (1 B), 0 damaged\n"


def test_what_is_kept_is_told_and_can_be_turned_off(cli: Cli) -> None:
    cli("put", "project", "k", "one")
    cli("put", "project", "k", "two!")
    shown = cli("stats").text.splitlines()[2]
    cli.configure("[history]\nversions = 0\ndeleted_hours = 0\n")
    cli("put", "project", "k", "three")

    assert shown.endswith(" of 20.0 MB, and 1 kept versions of 3 B")
    assert cli("stats", "--json").json["scopes"][2]["kept"] == 0
    assert len(cli("delete", "project", "k").text.splitlines()) == 1
    assert "not_found" in cli("history", "project", "k", code=3).err
    cli("put", "project", "k", "v")
    assert cli("clear", "project", "--yes").text == "cleared project: 1 entries (1 B)\n"
