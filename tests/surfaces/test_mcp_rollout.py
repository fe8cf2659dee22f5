"""The rollout through the protocol: who gets which prompt and why, and that a kill acts at the next fetch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iris_kv.rollout import bucket
from iris_kv.settings import PromptSettings, Settings

if TYPE_CHECKING:
    from tests.conftest import Clock
    from tests.surfaces.conftest import Era, Open, Serve, Session

EARLY, LATE, LISTED = "ann", "bob", "eve"
"""The percentage of the tests reaches the first and not the second; the third is on the allow list."""
PERCENT = 50


async def fetch(session: Session, **arguments: str) -> tuple[str, str]:
    """Return the variant that the text is, and why by the description."""
    result = await session.client.get_prompt("system", arguments)
    variant = "compact" if "- research: " in result.messages[0].content.text else "full"
    described, _, reason = (result.description or "").partition(" system prompt (chosen by: ")
    assert described == variant
    return variant, reason


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a user's configuration, for a server in this process."""
    folder = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    (folder / "iris-kv").mkdir()
    return folder / "iris-kv"


# Precedence


RULES: list[tuple[Mapping[str, object], str, str]] = [
    ({"kill": True}, "full", "kill_switch"),
    ({"flag": False}, "full", "flag"),
    ({"variant": "compact"}, "compact", "argument"),
    ({"variant": "full"}, "full", "argument"),
    ({"subject": LISTED}, "compact", "allow_list"),
    ({"phase": "off"}, "full", "phase_off"),
    ({"phase": "on"}, "compact", "phase_on"),
    ({"phase": "percent", "subject": EARLY}, "compact", "phase_percent"),
    ({"phase": "percent", "subject": LATE}, "full", "phase_percent"),
]
"""From the first that counts to the last: what a fetch must be like, and what it then gets."""


@pytest.mark.parametrize("phase", ["off", "percent", "on"])
@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("kill", [True, False])
async def test_the_first_that_says_something_decides(
    era: Era, open_server: Open, config: Path, kill: bool, flag: bool, phase: str
) -> None:
    words = f'phase = "{phase}"\npercent = {PERCENT}\nallow = ["{LISTED}"]\nkill = {str(kill).lower()}\n'
    (config / "rollout.toml").write_text(words)
    settings = Settings(durability="fast", prompt=PromptSettings(compact=flag))
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    expected: dict[tuple[str, str], tuple[str, str]] = {}
    async with open_server(era, settings=settings) as session:
        for variant in ("", "compact", "full"):
            for subject in (EARLY, LATE, LISTED):
                variables = {"kill": kill, "flag": flag, "phase": phase, "variant": variant, "subject": subject}
                expected[variant, subject] = next(
                    (found, reason) for rule, found, reason in RULES if rule.items() <= variables.items()
                )
                got, why = await fetch(session, variant=variant, subject=subject)
                seen[variant, subject] = got, why.split(" in ")[0].split(")")[0]

    assert bucket(EARLY) < PERCENT * 10_000 <= bucket(LATE)
    assert seen == expected


async def test_compact_that_is_asked_for_in_vain_is_told_of(era: Era, open_server: Open, config: Path) -> None:
    async with open_server(era) as session:
        session.workspace.prompts.compact = False
        by_flag = await fetch(session, variant="compact")
        (config / "rollout.toml").write_text("kill = true\n")
        killed = await fetch(session, variant="compact")
        plain = await fetch(session)

    assert by_flag == (
        "full",
        "flag in set while running); compact was asked for, but the flag gives everybody full;"
        " set USE_KV_CACHE_PROMPT=true to have the choice",
    )
    assert killed == (
        "full",
        "kill_switch in iris-kv/rollout.toml); compact was asked for, but the kill switch gives everybody full;"
        " `iris-kv rollout status` says where",
    )
    assert plain == ("full", "kill_switch in iris-kv/rollout.toml)")


@pytest.mark.parametrize(("phase", "deprecated"), [("on", True), ("percent", False), ("off", False)])
async def test_full_is_deprecated_once_compact_is_rolled_out_and_still_works(
    era: Era, open_server: Open, config: Path, phase: str, deprecated: bool
) -> None:
    (config / "rollout.toml").write_text(f'phase = "{phase}"\n')
    async with open_server(era) as session:
        variant, why = await fetch(session, variant="full")

    assert variant == "full"
    assert ("is deprecated" in why, "USE_KV_CACHE_PROMPT=false" in why) == (deprecated, deprecated)


# Subjects


async def test_who_fetches_is_as_configured_else_the_argument_else_the_workspace(
    era: Era, open_server: Open, config: Path
) -> None:
    async with open_server(era) as session:
        workspace_id = await (await session.workspace.store()).workspace_id()
        (config / "rollout.toml").write_text(f'phase = "off"\nallow = ["{workspace_id}", "ann"]\n')
        seen = [await fetch(session), await fetch(session, subject="ann"), await fetch(session, subject="bob")]
    configured = Settings(durability="fast", prompt=PromptSettings(subject="bob"))
    async with open_server(era, settings=configured) as session:
        seen += [await fetch(session, subject="ann"), await fetch(session)]

    listed, off = (
        ("compact", "allow_list in iris-kv/rollout.toml)"),
        ("full", "phase_off in iris-kv/rollout.toml)"),
    )
    assert seen == [listed, listed, off, off, off]


async def test_where_the_store_cannot_answer_a_percentage_gives_full_to_whom_nobody_named(
    era: Era, open_server: Open, config: Path, workspace: Path
) -> None:
    (config / "rollout.toml").write_text('phase = "percent"\npercent = 99\n')
    (workspace / ".iris").touch()
    async with open_server(era) as session:
        seen = [await fetch(session), await fetch(session, subject=EARLY)]
        (workspace / ".iris").unlink()
        seen += [await fetch(session, subject=EARLY)]
        await session.workspace.aclose()
        exposures = await session.workspace.exposures(2)

    reason = "phase_percent in iris-kv/rollout.toml)"
    assert seen == [("full", reason), ("compact", reason), ("compact", reason)]
    assert [(each.variant, each.times, each.subjects) for each in exposures] == [("full", 1, 1), ("compact", 2, 1)]


async def test_stats_tell_what_this_workspace_gets(era: Era, open_server: Open, config: Path) -> None:
    async with open_server(era) as session:
        (config / "rollout.toml").write_text('phase = "off"\n')
        off = await session.data("cache_stats")
        (config / "rollout.toml").write_text("kill = true\n")
        killed = await session.data("cache_stats")

    assert [(each["prompt_variant"], each["prompt_reason"]) for each in (off, killed)] == [
        ("full", "phase_off in iris-kv/rollout.toml"),
        ("full", "kill_switch in iris-kv/rollout.toml"),
    ]


@pytest.mark.parametrize(("variant", "served"), [("full", "full"), ("compact", "compact")])
async def test_a_server_can_be_started_with_the_flag(era: Era, serve: Serve, variant: str, served: str) -> None:
    async with serve(era, "--variant", variant, env={"USE_KV_CACHE_PROMPT": "false"}) as session:
        got, why = await fetch(session)

    assert (got, why.split(" ")[0]) == (served, "flag" if served == "full" else "phase_on")


# The kill switch


async def test_a_kill_acts_within_the_second_in_which_other_files_are_not_looked_at(
    era: Era, open_server: Open, config: Path, clock: Clock
) -> None:
    async with open_server(era, clock=clock) as session:
        before = await fetch(session)
        (config / "rollout.toml").write_text("kill = true\n")
        killed = await fetch(session)
        (config / "rollout.toml").write_text("kill = false\n")
        back = await fetch(session)

    assert [each[0] for each in (before, killed, back)] == ["compact", "full", "compact"]


async def test_a_kill_under_a_running_server_acts_at_the_next_fetch_and_so_does_its_end(
    era: Era, serve: Serve, home: Mapping[str, str]
) -> None:
    file = Path(home["XDG_CONFIG_HOME"]) / "iris-kv" / "rollout.toml"
    file.parent.mkdir(parents=True)
    seen: list[tuple[str, str]] = []
    async with serve(era) as session:
        for text in ("", "kill = true\n", "kill = false\n", "kill = tru\n", 'phase = "off"\n', ""):
            file.write_text(text)
            seen.append(await fetch(session))
        resource = await session.resource("iris-kv://prompt/compact")

    assert [variant for variant, _ in seen] == ["compact", "full", "compact", "full", "full", "compact"]
    assert [reason.split(" ")[0] for _, reason in seen] == [
        *("phase_on", "kill_switch", "phase_on", "kill_switch", "phase_off", "phase_on")
    ]
    assert "- research: " in resource


async def test_a_resource_is_the_variant_it_names_whatever_the_rollout_says(
    era: Era, open_server: Open, config: Path
) -> None:
    (config / "rollout.toml").write_text("kill = true\n")
    async with open_server(era) as session:
        parts = [(await session.contents(f"iris-kv://prompt/{variant}"))[0] for variant in ("compact", "full")]
        await session.workspace.aclose()
        exposures = await session.workspace.exposures(1)

    assert ["- research: " in part.model_dump()["text"] for part in parts] == [True, False]
    assert exposures == ()
