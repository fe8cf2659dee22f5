"""Settings: which layer wins, what a layer may not say, and how a mistake is told."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from iris_kv.errors import ForbiddenError, InvalidArgumentError, IrisError
from iris_kv.model import SCOPES, Keep, Limits
from iris_kv.settings import (
    ScopeSettings,
    SeededScopeSettings,
    Settings,
    load_settings,
    settings_at_hand,
    shipped,
    user_config_path,
)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "work" / ".iris").mkdir(parents=True)
    return tmp_path / "work"


def write_user(toml: str | bytes) -> None:
    path = user_config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())


def write_workspace(workspace: Path, toml: str) -> None:
    (workspace / ".iris" / "config.toml").write_text(toml)


NO = ("false", "0", "no", "off", "Off")


def told(work: Callable[[], object]) -> str:
    with pytest.raises(IrisError) as error:
        work()
    return str(error.value)


# Layers


def test_without_any_layer_all_is_default(workspace: Path) -> None:
    settings = load_settings(workspace)

    assert settings == Settings()
    assert settings.origins == {}


def test_the_defaults_are_those_of_the_design() -> None:
    day, megabyte = 24 * 3_600_000, 1_000_000
    sizes = {"system": 10, "instructions": 64, "project": 20, "task": 100, "artifacts": 200}
    days = {"task": 30, "artifacts": 14}

    limits = {scope: Settings().limits(scope) for scope in SCOPES}

    assert limits == {
        scope: Limits(
            quota_bytes=sizes[scope] * megabyte,
            max_value_bytes=min(sizes[scope], 50) * megabyte,
            ttl_ms=days[scope] * day if scope in days else None,
            renew=scope in days,
            keep=Keep() if scope in {"system", "instructions"} else Keep(versions=3, deleted_ms=day),
        )
        for scope in SCOPES
    }
    assert (Settings().profile, Settings().durability, Settings().prompt.compact) == ("standard", "full", True)


def test_each_layer_wins_over_those_below_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [load_settings(workspace)]
    for add_layer in (
        lambda: write_workspace(workspace, "[prompt]\ncompact = false\n"),
        lambda: write_user("[prompt]\ncompact = true\n"),
        lambda: (workspace / ".env").write_text("OTHER=x\nexport USE_KV_CACHE_PROMPT=off\n"),
        lambda: monkeypatch.setenv("USE_KV_CACHE_PROMPT", "on"),
        lambda: monkeypatch.setenv("IRIS_KV_PROMPT__COMPACT", "false"),
    ):
        add_layer()
        seen.append(load_settings(workspace))
    seen.append(load_settings(workspace, {"prompt.compact": True}))

    assert [(each.prompt.compact, each.origins.get("prompt.compact")) for each in seen] == [
        (True, None),
        (False, "workspace configuration"),
        (True, "user configuration"),
        (False, ".env USE_KV_CACHE_PROMPT"),
        (True, "environment USE_KV_CACHE_PROMPT"),
        (False, "environment"),
        (True, "argument"),
    ]


def test_layers_are_merged_setting_by_setting(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_workspace(workspace, "max_value_mb = 1\n[scopes.task]\nquota_mb = 5\nttl_hours = 1\n")
    write_user("durability = 'fast'\n[scopes.task]\nttl_hours = 2\n")
    monkeypatch.setenv("IRIS_KV_SCOPES__ARTIFACTS__TTL_HOURS", "never")

    settings = load_settings(workspace, {"profile": "full"})

    assert settings.scopes.task == ScopeSettings(quota_mb=5, ttl_hours=2, renew=True)
    assert settings.scopes.artifacts == ScopeSettings(quota_mb=200, ttl_hours="never", renew=True)
    assert settings.origins == {
        "profile": "argument",
        "scopes.artifacts.ttl_hours": "environment",
        "durability": "user configuration",
        "scopes.task.ttl_hours": "user configuration",
        "max_value_mb": "workspace configuration",
        "scopes.task.quota_mb": "workspace configuration",
    }


def test_what_is_kept_is_set_for_all_scopes_or_for_one(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_workspace(workspace, "[history]\nversions = 5\n[scopes.task.history]\nversions = 0\n")
    monkeypatch.setenv("IRIS_KV_SCOPES__ARTIFACTS__HISTORY__DELETED_HOURS", "0.5")

    settings = load_settings(workspace, {"history.deleted_hours": 0})

    assert {scope: settings.limits(scope).keep for scope in SCOPES} == {
        "system": Keep(),
        "instructions": Keep(),
        "project": Keep(versions=5),
        "task": Keep(),
        "artifacts": Keep(versions=5, deleted_ms=1_800_000),
    }


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[history]\nversions = -1", "history.versions in workspace configuration is -1; .* 0"),
        ("[history]\nversions = 101", "history.versions in workspace configuration is 101; .* 100"),
        ("[history]\nversions = 1.5", "history.versions in workspace configuration is 1.5"),
        ("[history]\ndeleted_hours = 721", "history.deleted_hours in workspace configuration is 721; .* 720"),
        ("[history]\ndeleted_hours = nan", "history.deleted_hours in workspace configuration is nan"),
        ("[scopes.task.history]\nversions = -1", "scopes.task.history.versions in workspace configuration is -1"),
        ("[scopes.system.history]\nversions = 1", "scopes.system.history"),
    ],
)
def test_what_is_kept_has_bounds_and_seeded_scopes_keep_nothing(workspace: Path, text: str, wrong: str) -> None:
    write_workspace(workspace, text + "\n")

    assert re.search(wrong, told(lambda: load_settings(workspace)))


def test_a_partly_set_scope_keeps_its_own_defaults(workspace: Path) -> None:
    write_workspace(workspace, "[scopes.system]\nquota_mb = 3\n[scopes.task]\nquota_mb = 3\n")

    scopes = load_settings(workspace).scopes

    assert scopes.system == SeededScopeSettings(quota_mb=3, ttl_hours="never", renew=False)
    assert scopes.task == ScopeSettings(quota_mb=3, ttl_hours=720, renew=True)


@pytest.mark.parametrize(
    ("word", "compact"),
    [*((word, True) for word in ("true", "1", "yes", "on", "TRUE")), *((word, False) for word in NO)],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_the_flag_of_the_seed_system_takes_the_usual_words(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, word: str, compact: bool, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("USE_KV_CACHE_PROMPT", word)
    else:
        (workspace / ".env").write_text(f"USE_KV_CACHE_PROMPT={word}\n")

    settings = load_settings(workspace)

    assert (settings.prompt.compact, settings.origins) == (compact, {"prompt.compact": f"{place} USE_KV_CACHE_PROMPT"})


def test_empty_variables_set_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USE_KV_CACHE_PROMPT", "IRIS_KV_PROFILE", "IRIS_KV_WORKSPACE", "IRIS_KV_SCOPES__TASK__TTL_HOURS"):
        monkeypatch.setenv(name, "")

    assert load_settings(workspace) == Settings()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"just words\nUSE_KV_CACHE_PROMPT", b"a=b\n"])
def test_a_dotenv_that_is_not_for_us_sets_nothing(workspace: Path, content: bytes) -> None:
    (workspace / ".env").write_bytes(content)

    assert load_settings(workspace) == Settings()


def test_without_a_workspace_only_the_user_and_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    write_user("profile = 'full'\n")
    monkeypatch.setenv("IRIS_KV_DURABILITY", "fast")

    assert load_settings(None).origins == {"durability": "environment", "profile": "user configuration"}


def test_the_users_file_is_found_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_home = user_config_path()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    assert at_home == tmp_path / "home" / ".config" / "iris-kv" / "config.toml"
    assert user_config_path() == tmp_path / "xdg" / "iris-kv" / "config.toml"


def test_a_user_without_a_home_has_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~" / ".config" / "iris-kv").mkdir(parents=True)
    (tmp_path / "~" / ".config" / "iris-kv" / "config.toml").write_text("profile = 'full'\n")

    assert load_settings(None).profile == "standard"


# Mistakes


@pytest.mark.parametrize(
    ("toml", "unknown", "nearest"),
    [
        ("profil = 'full'\n", "profil", "profile"),
        ("[prompt]\ncompct = true\n", "prompt.compct", "prompt.compact"),
        ("[scopes.tasks]\nquota_mb = 1\n", "scopes.tasks", "scopes.task"),
        ("[scopes.task]\nttl = 1\n", "scopes.task.ttl", "scopes.task.ttl_hours"),
        ("[origins]\nprofile = 'me'\n", "origins", "durability"),
    ],
)
def test_an_unknown_key_names_the_nearest(workspace: Path, toml: str, unknown: str, nearest: str) -> None:
    write_user(toml)

    error = told(lambda: load_settings(workspace))

    assert error.startswith(f"invalid_argument: unknown setting {unknown!r} in user configuration; known are ")
    assert error.endswith("?")
    assert nearest in error


def test_an_unknown_key_of_the_workspaces_file_is_told_as_unknown(workspace: Path) -> None:
    write_workspace(workspace, "profil = 'full'\n")

    assert told(lambda: load_settings(workspace)).endswith("did you mean 'profile'?")


def test_an_unknown_variable_names_the_nearest(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRIS_KV_WORKSPACES", "/x")

    error = told(lambda: load_settings(workspace))

    assert "unknown setting 'IRIS_KV_WORKSPACES' in environment" in error
    assert error.endswith("did you mean 'IRIS_KV_WORKSPACE'?")


def test_an_unknown_argument_is_refused(workspace: Path) -> None:
    assert "unknown setting 'prompt.x' in argument" in told(lambda: load_settings(workspace, {"prompt.x": 1}))


@pytest.mark.parametrize(
    ("toml", "named", "allowed"),
    [
        ("profile = 'all'\n", "profile in user configuration is 'all'", "'standard' or 'full'"),
        ("max_value_mb = 0\n", "max_value_mb in user configuration is 0", "greater than 0"),
        ("max_value_mb = inf\n", "max_value_mb in user configuration is inf", "finite number"),
        ("[prompt]\ncompact = 'x'\n", "prompt.compact in user configuration is 'x'", "valid boolean"),
        ("[scopes.task]\nquota_mb = -1\n", "scopes.task.quota_mb in user configuration is -1", "greater than 0"),
        ("[scopes.task]\nttl_hours = 'soon'\n", "scopes.task.ttl_hours in user configuration is 'soon'", "or Input"),
        ("[scopes.task]\nttl_hours = 0\n", "scopes.task.ttl_hours in user configuration is 0", "greater than 0"),
        ("[scopes.task]\nttl_hours = inf\n", "scopes.task.ttl_hours in user configuration is inf", "'never'"),
        ("[scopes.task]\nttl_hours = nan\n", "scopes.task.ttl_hours in user configuration is nan", "'never'"),
        ("[scopes.task]\nttl_hours = 1e9\n", "scopes.task.ttl_hours in user configuration is 1000", "876000"),
        ("[instructions]\nfolders = 'x'\n", "instructions.folders in user configuration is 'x'", "valid tuple"),
        ('[instructions]\nfolders = ["a\\u0000"]\n', "instructions.folders in user configuration", "NUL"),
        ("prompt = 1\n", "prompt in user configuration is 1", "a table of source, compact, phase"),
        ("scopes = []\n", "scopes in user configuration is []", "a table of system, instructions"),
        ("[scopes]\ntask = 'x'\n", "scopes.task in user configuration is 'x'", "a table of quota_mb"),
        ("[profile]\na = 1\n", "profile in user configuration is {'a': 1}", "'standard' or 'full'"),
    ],
)
def test_a_bad_value_names_setting_layer_and_what_is_allowed(
    workspace: Path, toml: str, named: str, allowed: str
) -> None:
    write_user(toml)
    # A higher layer that sets something beside it must not hide or break it.
    error = told(lambda: load_settings(workspace, {"trust_owner": True}))

    assert error.startswith(f"invalid_argument: {named}")
    assert allowed in error


def test_a_table_in_place_of_a_value_is_overruled_like_any_value(workspace: Path) -> None:
    write_user("[profile]\na = 1\n")

    assert load_settings(workspace, {"profile": "full"}).profile == "full"


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_bad_flag_names_the_variable(workspace: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "environment":
        monkeypatch.setenv("USE_KV_CACHE_PROMPT", "maybe")
    else:
        (workspace / ".env").write_text("USE_KV_CACHE_PROMPT=maybe\n")

    error = told(lambda: load_settings(workspace))

    assert error.startswith(f"invalid_argument: prompt.compact in {place} USE_KV_CACHE_PROMPT is 'maybe'; ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("IRIS_KV_PROMPT", "compact"), ("IRIS_KV_SCOPES", "3"), ("IRIS_KV_INSTRUCTIONS__FOLDERS", "[")],
)
def test_a_variable_that_is_not_json_where_it_must_be_is_told_in_words(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidArgumentError, match="environment"):
        load_settings(workspace)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[scopes", "is not TOML: Expected ']'"),
        (b"\xff", "is not TOML: 'utf-8' codec"),
        (b"a = " + b"[" * 20_000, "is not TOML: "),
        (b"a = 1" + b"0" * 5_000, "is not TOML: "),
        (b"#" * 1_000_001, "has more than 1,000,000 bytes"),
        (b"max_value_mb" + b".a" * 60_000 + b" = 1", "a key has more than 32 parts"),
    ],
    ids=["broken", "not utf-8", "nested", "huge number", "large", "deep"],
)
def test_a_file_that_cannot_be_understood_is_told_in_words(workspace: Path, content: bytes, why: str) -> None:
    write_user(content)

    assert why in told(lambda: load_settings(workspace))


def test_a_folder_in_place_of_the_file_is_told_in_words(workspace: Path) -> None:
    user_config_path().mkdir(parents=True)

    error = told(lambda: load_settings(workspace))

    assert error.startswith("invalid_argument: iris-kv/config.toml cannot be read: Is a directory; ")


def test_a_planted_pipe_in_place_of_the_file_does_not_make_us_wait(workspace: Path) -> None:
    os.mkfifo(workspace / ".iris" / "config.toml")

    assert ".iris/config.toml cannot be read: is not a regular file" in told(lambda: load_settings(workspace))


def test_a_pipe_or_a_huge_file_in_place_of_dotenv_sets_nothing(workspace: Path) -> None:
    os.mkfifo(workspace / ".env")
    of_pipe = load_settings(workspace).prompt.compact
    (workspace / ".env").unlink()
    (workspace / ".env").write_text("#" * 1_000_001 + "\nUSE_KV_CACHE_PROMPT=0\n")

    assert (of_pipe, load_settings(workspace).prompt.compact) == (True, True)


# What a workspace's file may say


def test_the_workspaces_file_may_set_quotas_ttls_profile_variant_and_folders_inside(workspace: Path) -> None:
    write_workspace(
        workspace,
        "profile = 'full'\nmax_value_mb = 3\n[prompt]\ncompact = false\n"
        "[scopes.project]\nttl_hours = 4\n[instructions]\nfolders = ['docs', './a/../b']\n",
    )

    settings = load_settings(workspace)

    assert set(settings.origins.values()) == {"workspace configuration"}
    assert settings.instructions.folders == (Path("docs"), Path("a/../b"))


@pytest.mark.parametrize("toml", ["trust_owner = true\n", "durability = 'fast'\n"])
def test_the_workspaces_file_may_not_set_what_concerns_the_user(workspace: Path, toml: str) -> None:
    write_workspace(workspace, toml)

    with pytest.raises(ForbiddenError, match=r"move it to iris-kv/config\.toml in the user's configuration folder"):
        load_settings(workspace)


@pytest.mark.parametrize("folder", ["..", "/etc", "docs/../../other", "~", "~/instructions", "link", "link/inner"])
def test_the_workspaces_file_may_not_name_folders_outside(workspace: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "outside" / "inner").mkdir(parents=True)
    (workspace / "link").symlink_to(tmp_path / "outside")
    write_workspace(workspace, f"[instructions]\nfolders = ['fine', {folder!r}]\n")

    with pytest.raises(ForbiddenError, match="outside the workspace"):
        load_settings(workspace)


@pytest.mark.parametrize("linked", ["config.toml", "."])
def test_the_workspaces_file_is_not_read_through_a_link_out_of_it(workspace: Path, tmp_path: Path, linked: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.toml").write_text("profile = 'full'\n")
    if linked == ".":
        (workspace / ".iris").rmdir()
        (workspace / ".iris").symlink_to(tmp_path / "outside")
    else:
        (workspace / ".iris" / linked).symlink_to(tmp_path / "outside" / linked)

    with pytest.raises(ForbiddenError, match="the file is outside the workspace"):
        load_settings(workspace)


def test_a_workspace_that_is_a_link_itself_is_the_users_choice(workspace: Path, tmp_path: Path) -> None:
    write_workspace(workspace, "[instructions]\nfolders = ['docs']\n")
    (tmp_path / "link").symlink_to(workspace)

    assert load_settings(tmp_path / "link").instructions.folders == (Path("docs"),)


def test_the_user_may_name_folders_anywhere(workspace: Path, tmp_path: Path) -> None:
    write_user("[instructions]\nfolders = ['/opt/instructions', '~/mine', 'docs']\n")

    folders = load_settings(workspace).instructions.folders

    assert folders == (Path("/opt/instructions"), tmp_path / "home" / "mine", Path("docs"))


def test_the_workspaces_file_may_leave_the_shipped_instructions_out_which_it_could_override_anyway(
    workspace: Path,
) -> None:
    write_workspace(workspace, "[instructions]\nshipped = false\n")

    assert load_settings(workspace).instructions.shipped is False


def test_the_users_prompt_source_may_start_at_the_home_folder(workspace: Path, tmp_path: Path) -> None:
    write_user("[prompt]\nsource = '~/mine.md'\n")

    assert load_settings(workspace).prompt.source == tmp_path / "home" / "mine.md"


def test_folders_of_the_workspaces_file_that_are_overruled_do_no_harm(workspace: Path) -> None:
    write_workspace(workspace, "[instructions]\nfolders = ['..']\n")

    assert load_settings(workspace, {"instructions.folders": [Path("/x")]}).instructions.folders == (Path("/x"),)


@pytest.mark.parametrize(
    "key", ["phase = 'off'", "percent = 5", "allow = ['a']", "kill = false", "subject = 'a'", "source = 'p.md'"]
)
def test_the_workspaces_file_may_not_steer_the_rollout(workspace: Path, key: str) -> None:
    write_workspace(workspace, f"[prompt]\n{key}\n")

    with pytest.raises(ForbiddenError, match=f"sets 'prompt.{key.split(maxsplit=1)[0]}'"):
        load_settings(workspace)


# The rollout


def test_a_kill_in_any_layer_kills_whatever_the_layers_over_it_say(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_user("[prompt]\nkill = true\n")
    monkeypatch.setenv("IRIS_KV_PROMPT__KILL", "false")

    settings = load_settings(workspace, {"prompt.kill": False})

    assert (settings.prompt.kill, settings.origins) == (True, {"prompt.kill": "user configuration"})


def test_the_rollout_is_set_by_variables_too(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PHASE", "percent"), ("PERCENT", "12.25"), ("ALLOW", '["a", "b"]'), ("SUBJECT", "me")):
        monkeypatch.setenv(f"IRIS_KV_PROMPT__{name}", value)

    prompt = load_settings(workspace).prompt

    assert (prompt.phase, prompt.percent, prompt.allow, prompt.subject) == ("percent", 12.25, ("a", "b"), "me")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("phase = 'half'", "prompt.phase in user configuration is 'half'; Input should be 'off', 'percent' or 'on'"),
        ("percent = 101", "prompt.percent in user configuration is 101; Input should be less than or equal to 100"),
        ("kill = 'maybe'", "prompt.kill in user configuration is 'maybe'; Input should be a valid boolean"),
        ("allow = 'me'", "prompt.allow in user configuration is 'me'; Input should be a valid tuple"),
        ("subject = ''", "prompt.subject in user configuration is ''; String should have at least 1 character"),
    ],
)
def test_a_mistake_in_the_rollout_is_told(workspace: Path, toml: str, words: str) -> None:
    write_user(f"[prompt]\n{toml}\n")

    assert words in told(lambda: load_settings(workspace))


# What counts where something is broken


def test_a_broken_file_of_the_workspace_leaves_all_other_layers_standing(workspace: Path) -> None:
    write_user("[prompt]\nphase = 'off'\n")
    (workspace / ".env").write_text("USE_KV_CACHE_PROMPT=false\n")
    write_workspace(workspace, "[scopes\n")

    settings, problem = settings_at_hand(workspace, {"profile": "full"})

    assert (settings.prompt.phase, settings.prompt.kill, settings.profile) == ("off", False, "full")
    assert settings.prompt.compact is False
    assert "config.toml is not TOML" in str(problem)


@pytest.mark.parametrize(
    ("arguments", "profile"), [({"profile": "full"}, "full"), ({"profile": "half"}, "standard")], ids=["good", "bad"]
)
def test_a_broken_configuration_of_the_user_may_mean_kill(
    workspace: Path, arguments: dict[str, object], profile: str
) -> None:
    write_user("[prompt]\nkil = true\n")

    settings, problem = settings_at_hand(workspace, arguments)

    assert (settings.prompt.kill, settings.profile) == (True, profile)
    assert settings.origins["prompt.kill"] == "the broken configuration"
    assert isinstance(problem, InvalidArgumentError)


def test_nothing_broken_is_no_problem(workspace: Path) -> None:
    assert settings_at_hand(workspace) == (load_settings(workspace), None)


# The package's own files


@pytest.mark.parametrize(("kind", "file"), [("instructions", "research_instructions.md"), ("prompts", "system.md")])
def test_the_packages_own_files_are_found(kind: str, file: str) -> None:
    assert (shipped(kind) / file).is_file()
