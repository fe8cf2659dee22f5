"""The rollout: buckets that stay, files that are read at every choice, and what a broken file does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from iris_kv.rollout import BUCKETS, Choice, LiveRollout, Rollout, bucket, rollout_files
from iris_kv.settings import PromptSettings, Settings, shipped

SUBJECTS = [f"user-{n}@example.org" for n in range(100_000)]
SHARES = (0, 0.01, 1, 12.34, 33.33, 50, 75.5, 99.99, 100)

Choose = Callable[..., Choice]


class Files:
    """A rollout with a file of the user's and one beside the prompt's source."""

    def __init__(self, folder: Path) -> None:
        self.user, self.beside = folder / "iris-kv" / "rollout.toml", folder / "prompts" / "rollout.toml"
        for path in (self.user, self.beside):
            path.parent.mkdir()

    def live(self, **settings: object) -> LiveRollout:
        return LiveRollout(Settings(prompt=PromptSettings.model_validate(settings)), [self.user, self.beside])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def shown(rollout: LiveRollout, subject: str | None = "alice") -> tuple[str, str]:
    choice = rollout.choose(None, subject)
    return choice.variant, choice.shown


# Buckets


def compact_subjects(percent: float) -> set[str]:
    rollout = Rollout(phase="percent", percent=percent)
    return {each for each in SUBJECTS if rollout.decide(flag=True, argument=None, subject=each).variant == "compact"}


def test_of_100_000_subjects_each_percentage_takes_its_share_and_a_higher_one_takes_it_from_nobody() -> None:
    reached = [compact_subjects(percent) for percent in SHARES]

    for percent, subjects in zip(SHARES, reached, strict=True):
        assert abs(100 * len(subjects) / len(SUBJECTS) - percent) < 0.5
    assert all(fewer <= more for fewer, more in pairwise(reached))
    assert (len(reached[0]), len(reached[-1])) == (0, len(SUBJECTS))


def test_a_bucket_is_the_same_for_good() -> None:
    assert [bucket(each) for each in ("alice", "bob", "é", "\udcff", "")] == [58748, 869588, 32805, 466313, 739978]


def test_a_percentage_counts_to_its_fourth_decimal() -> None:
    at = bucket("alice")
    below, above = at * 100 / BUCKETS, (at + 1) * 100 / BUCKETS

    decided = [
        Rollout(phase="percent", percent=percent).decide(flag=True, argument=None, subject="alice").variant
        for percent in (below, above)
    ]

    assert decided == ["full", "compact"]


@pytest.mark.parametrize(("percent", "variant"), [(0, "full"), (99.99999, "full"), (100, "compact")])
def test_a_subject_that_is_not_known_gets_no_share_but_the_whole(percent: float, variant: str) -> None:
    decision = Rollout(phase="percent", percent=percent).decide(flag=True, argument=None, subject=None)

    assert decision == (variant, "phase_percent")


# Files


def test_the_shipped_rollout_gives_everybody_compact() -> None:
    source = shipped("prompts") / "system.md"
    rollout = LiveRollout(Settings(), rollout_files(source)[1:])

    assert shown(rollout) == ("compact", "phase_on in prompts/rollout.toml")
    assert rollout.errors == ()


def test_without_files_everybody_gets_compact(files: Files) -> None:
    assert shown(files.live()) == ("compact", "phase_on in the defaults")


def test_the_users_file_wins_key_by_key_and_settings_win_over_both(files: Files) -> None:
    files.beside.write_text('phase = "percent"\npercent = 100\nallow = ["bob"]\n')
    files.user.write_text("percent = 0\n")

    by_files, by_settings = files.live(), files.live(percent=50.5, allow=())

    assert by_files.read().model_dump() == {
        "phase": "percent",
        "percent": 0,
        "allow": ("bob",),
        "kill": False,
        "origins": {
            "phase": "prompts/rollout.toml",
            "percent": "iris-kv/rollout.toml",
            "allow": "prompts/rollout.toml",
        },
    }
    assert (by_settings.read().percent, by_settings.read().allow) == (50.5, ())
    assert by_settings.read().origins["percent"] == "the settings"


@pytest.mark.parametrize("place", ["user", "beside", "settings"])
def test_a_kill_in_any_place_kills_whatever_the_others_say(files: Files, place: str) -> None:
    for path in (files.user, files.beside):
        path.write_text('phase = "on"\nkill = false\n')
    if place != "settings":
        getattr(files, place).write_text("kill = true\n")
    origins = {
        "user": "iris-kv/rollout.toml",
        "beside": "prompts/rollout.toml",
        "settings": "the settings",
    }

    assert shown(files.live(kill=place == "settings")) == ("full", f"kill_switch in {origins[place]}")


def test_an_edit_counts_at_the_next_choice_even_if_neither_size_nor_time_tells_of_it(files: Files) -> None:
    files.user.write_text('phase = "percent"\npercent = 100\n')
    before = os.stat(files.user)
    rollout = files.live()
    first = shown(rollout)

    files.user.write_text('phase = "percent"\npercent = 0.0\n')
    os.utime(files.user, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert os.stat(files.user).st_size == before.st_size
    assert (first[0], shown(rollout)[0]) == ("compact", "full")


def test_a_file_that_is_deleted_says_nothing_any_more(files: Files) -> None:
    files.user.write_text('phase = "off"\n')
    rollout = files.live()
    first = shown(rollout)
    files.user.unlink()

    assert (first, shown(rollout)) == (
        ("full", "phase_off in iris-kv/rollout.toml"),
        ("compact", "phase_on in the defaults"),
    )


def test_one_file_in_both_places_is_one(files: Files) -> None:
    files.user.write_text("nothing\n")

    assert len(LiveRollout(Settings(), [files.user, files.user]).errors) == 1


# Broken files


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("phase = 'half'\n", "phase in iris-kv/rollout.toml is 'half'; it is 'off', 'percent' or 'on'; mend the file"),
        ("percent = 101\n", "percent in iris-kv/rollout.toml is 101; it is a number from 0 to 100; mend the file"),
        ("percent = nan\n", "percent in iris-kv/rollout.toml is nan; it is a number from 0 to 100; mend the file"),
        ("percent = '5'\n", "percent in iris-kv/rollout.toml is '5'; it is a number from 0 to 100; mend the file"),
        ("percent = true\n", "percent in iris-kv/rollout.toml is True; it is a number from 0 to 100; mend the file"),
        ("allow = 'bob'\n", "allow in iris-kv/rollout.toml is 'bob'; it is a list of subjects, such as [\"alice\"];"),
        ("allow = [1]\n", "allow in iris-kv/rollout.toml is [1]; it is a list of subjects"),
        ("phases = 'on'\n", "unknown setting 'phases' in iris-kv/rollout.toml; known are phase, percent, allow, kill;"),
        ("phase = on\n", "iris-kv/rollout.toml is not TOML: Invalid value"),
        ("\0", "iris-kv/rollout.toml is not TOML: "),
        ("[prompt]\nphase = 'off'\n", "unknown setting 'prompt' in iris-kv/rollout.toml; known are phase, "),
    ],
)
def test_a_broken_edit_keeps_the_last_good_rollout_and_tells_and_logs_it_once(
    files: Files, caplog: pytest.LogCaptureFixture, text: str, error: str
) -> None:
    files.user.write_text('phase = "off"\nallow = ["bob"]\n')
    rollout = files.live()

    files.user.write_text(text)
    with caplog.at_level(logging.ERROR):
        broken = [shown(rollout), shown(rollout), shown(rollout, "bob")]
    errors = rollout.errors
    files.user.write_text('phase = "on"\n')
    mended = shown(rollout)

    assert broken[:2] == [("full", "phase_off in iris-kv/rollout.toml")] * 2
    assert broken[2] == ("compact", "allow_list in iris-kv/rollout.toml")
    assert errors[0].startswith(f"invalid_argument: {error}")
    assert errors[0].endswith("; until then the last good one holds")
    assert [record.getMessage() for record in caplog.records] == [f"the rollout is broken: {errors[0]}"]
    assert (mended, rollout.errors) == (("compact", "phase_on in iris-kv/rollout.toml"), ())


@pytest.mark.parametrize(
    "text",
    [
        *("kill = ture\n", "kill = yes\n", "kill=\n", "kill\n", "kill: true\n", "KILL = TRUE\n", "kil = true\n"),
        *("'kill' = on\n", "[prompt]\nkill = true\n", "phase = 'on' kill = true\n", "killed = true\n", "kill = [\n"),
        *("kill = 'maybe'\n", "kill = falsee\n", "phase = \nkill = true # now\n", "kill = 7\n"),
        *("percent = 100kill = true\n", "emergency_kill = true\n", "k\0i\0l\0l\0 = true\n"),
    ],
)
def test_a_broken_edit_that_may_mean_kill_kills_until_it_is_mended(files: Files, text: str) -> None:
    files.user.write_text('phase = "on"\n')
    rollout = files.live()
    first = shown(rollout)

    files.user.write_text(text)
    feared, errors = shown(rollout), rollout.errors
    files.user.write_text("phase = [\n")
    still = shown(rollout)
    files.user.write_text("kill = false\n")

    assert (first[0], feared, still) == ("compact", *[("full", "kill_switch in iris-kv/rollout.toml")] * 2)
    assert errors[0].endswith("; until then full is served, as it may mean kill")
    assert shown(rollout)[0] == "compact"


@pytest.mark.parametrize("text", ["phase = [\nkill = false\n", "# kill = true\nphase = [\n", "phase = 'skill'\n"])
def test_a_broken_edit_that_says_nothing_of_kill_does_not_kill(files: Files, text: str) -> None:
    files.user.write_text('phase = "on"\n')
    rollout = files.live()
    files.user.write_text(text)

    assert (shown(rollout)[0], len(rollout.errors)) == ("compact", 1)


def test_a_file_that_cannot_be_read_may_mean_kill(files: Files) -> None:
    files.user.write_text('phase = "on"\n')
    rollout = files.live()
    answers = [shown(rollout)[0]]
    files.user.write_text("#" * 1_000_001)
    answers.append(shown(rollout)[0])
    files.user.write_text('phase = "on"\n')
    answers.append(shown(rollout)[0])
    files.user.unlink()
    files.user.symlink_to("nowhere")
    answers.append(shown(rollout)[0])
    files.user.unlink()
    answers.append(shown(rollout)[0])

    assert answers == ["compact", "full", "compact", "full", "compact"]


def test_a_deep_value_is_told_in_few_words(files: Files) -> None:
    files.user.write_text("allow" + ".a" * 25 + " = 1\nphase = 'on'\n")
    files.beside.write_text("kill" + ".a" * 60_000 + " = 1\n")

    first, second = files.live().errors

    assert "allow in iris-kv/rollout.toml is {'a': {" in first
    assert "a key has more than 32 parts" in second
    assert len(first) + len(second) < 1_000


@pytest.mark.parametrize("word", ["true", "1", "'true'", "'on'"])
def test_kill_takes_the_words_of_the_settings(files: Files, word: str) -> None:
    files.user.write_text(f"kill = {word}\n")
    rollout = files.live()

    assert (shown(rollout)[0], rollout.errors) == ("full", ())


@pytest.mark.parametrize("place", ["user", "beside"])
def test_a_file_that_is_broken_from_the_start_kills_as_nobody_knows_what_it_said(files: Files, place: str) -> None:
    path: Path = getattr(files, place)
    path.write_text("phase = 'on\n")
    rollout = files.live(phase="on")
    first, errors = shown(rollout), rollout.errors
    path.write_text("phase = 'on'\n")

    assert first == ("full", f"kill_switch in {path.parent.name}/rollout.toml")
    assert errors[0].endswith("; until then full is served, as it may mean kill")
    assert shown(rollout)[0] == "compact"


def test_a_file_that_cannot_be_read_any_more_is_told_and_one_that_is_gone_is_not(files: Files) -> None:
    files.user.write_text("kill = true\n")
    rollout = files.live()
    files.user.unlink()
    files.user.mkdir()
    unreadable, errors, again = shown(rollout), rollout.errors, shown(rollout)
    files.user.rmdir()

    assert unreadable == again == ("full", "kill_switch in iris-kv/rollout.toml")
    assert "iris-kv/rollout.toml cannot be read: Is a directory" in errors[0]
    assert (shown(rollout)[0], rollout.errors) == ("compact", ())
