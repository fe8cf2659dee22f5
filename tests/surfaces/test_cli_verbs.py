"""The verbs on entries and scopes, run in this process: what they print, and how they end."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sqlite3
import sys
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from iris_kv.cli import app
from iris_kv.cli.output import EXIT_CODES
from iris_kv.errors import Code
from iris_kv.guidance import SystemClock
from iris_kv.model import Limits, Provenance
from iris_kv.store.files import FileStore

SCOPE_NAMES = ["system", "instructions", "project", "task", "artifacts"]
BINARY = bytes(range(256))
HOSTILE_KEYS = [
    "../../etc/passwd",
    "/abs",
    "..",
    ".",
    "_index.json",
    ".index.json",
    "a/b",
    "a_b",
    "CON",
    "-k",
    "--help",
    " blank ends ",
    "'quoted' \"twice\" $HOME `id`",
    "emoji 🦉",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "x" * 512,
]


COMMAND = get_command(app)
"""Made once: it takes 20 ms."""


class Ran(NamedTuple):
    """What a verb printed."""

    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Runs verbs in this process, in a workspace and with a home of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace = folder / "work"
        self.home = folder / "home"
        for made in (self.workspace, self.home):
            made.mkdir()
        for name in os.environ:
            if name.startswith(("IRIS_KV_", "USE_KV_CACHE_PROMPT", "XDG_")):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("IRIS_KV_WORKSPACE", str(self.workspace))
        monkeypatch.setenv("IRIS_KV_DURABILITY", "fast")
        monkeypatch.chdir(self.workspace)

    def __call__(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> Ran:
        """Run a verb that must end with this exit code."""
        with CliRunner().isolation(input=stdin) as (out, err, both):
            with pytest.raises(SystemExit) as ended:
                COMMAND.main(args=arguments, prog_name="iris-kv")
            sys.stdout.flush()
            sys.stderr.flush()
            assert (ended.value.code or 0) == code, both.getvalue().decode()
            return Ran(out.getvalue(), err.getvalue().decode())

    def configure(self, toml: str) -> None:
        """Write the workspace's configuration."""
        (self.workspace / ".iris").mkdir(exist_ok=True)
        (self.workspace / ".iris" / "config.toml").write_text(toml)

    def value_file(self, scope: str) -> Path:
        """Return the only value file of a scope."""
        (found,) = (self.workspace / ".iris" / "kv-cache" / scope).glob("*__*")
        return found

    def flip_byte(self, scope: str) -> None:
        """Damage the only value of a scope."""
        file = self.value_file(scope)
        raw = bytearray(file.read_bytes())
        raw[0] ^= 1
        file.write_bytes(raw)


def isolated_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return the verbs; the fixture `cli` of each module of these tests."""
    return Cli(tmp_path, monkeypatch)


cli = pytest.fixture(isolated_cli)


def digest(value: bytes) -> str:
    return "sha256:" + hashlib.sha256(value).hexdigest()


# put and get


def test_a_value_on_the_command_line_comes_back_byte_for_byte(cli: Cli) -> None:
    cli("put", "artifacts", "k", "Grüße\n")

    assert cli("get", "artifacts", "k").out == "Grüße\n".encode()


@pytest.mark.parametrize("asked", [(), ("-",)])
def test_a_binary_value_on_stdin_comes_back_byte_for_byte(cli: Cli, asked: tuple[str, ...]) -> None:
    cli("put", "artifacts", "k", *asked, stdin=BINARY)

    assert cli("get", "artifacts", "k").out == BINARY


def test_a_file_is_stored_with_the_content_type_of_its_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_bytes(b"# Notes\r\n")

    info = cli("put", "artifacts", "k", "--file", "../notes.md", "--json").json

    assert (info["content_type"], info["digest"], info["size"]) == ("text/markdown", digest(b"# Notes\r\n"), 9)


def test_a_pipe_is_taken_as_a_file(cli: Cli) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe")
    os.close(writing)

    cli("put", "artifacts", "k", "--file", f"/dev/fd/{reading}")
    os.close(reading)

    assert cli("get", "artifacts", "k").out == b"from a pipe"


def test_an_empty_value_is_a_value(cli: Cli) -> None:
    cli("put", "artifacts", "k", "")

    assert cli("get", "artifacts", "k").out == b""


def test_put_says_in_text_and_in_json_what_it_stored(cli: Cli) -> None:
    put = ("put", "task", "k", '{"a": 1}', "--ttl-hours", "2.5", "--metadata", "kind=state", "--metadata", "x=a=b")
    info = cli(*put, "--json").json
    text = cli(*put).text

    assert info["metadata"] == {"kind": "state", "x": "a=b"}
    assert (info["ttl_ms"], info["content_type"], info["version"]) == (9_000_000, "application/json", 1)
    assert info["provenance"] == {"author": "user", "face": "cli"}
    assert text.startswith(f"stored task 'k' 8 B application/json {info['digest'][:23]} by user via cli, expires 20")


def test_the_digest_that_put_prints_can_be_given_back(cli: Cli) -> None:
    first = cli("put", "project", "k", "one").text.split()[6]

    cli("put", "project", "k", "two", "--if-digest", first)
    cli("put", "project", "k", "three", "--if-digest", first, code=4)

    assert cli("get", "project", "k").out == b"two"


def test_an_empty_digest_writes_only_what_is_absent(cli: Cli) -> None:
    cli("put", "project", "k", "one", "--if-digest", "")
    cli("put", "project", "k", "two", "--if-digest", "", code=4)

    assert cli("get", "project", "k").out == b"one"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("put", "project", "k", "v", "--file", "f"), "only one of them"),
        (("put", "project", "k", "v", "--metadata", "novalue"), "NAME=VALUE"),
        (("put", "project", "k", "v", "--metadata", "=v"), "NAME=VALUE"),
        (("put", "project", "k", "v", "--ttl-hours", "0"), "above 0"),
        (("put", "project", "k", "v", "--ttl-hours", "nan"), "above 0"),
        (("put", "project", "k", "{", "--content-type", "application/json"), "does not parse"),
        (("put", "project", "", "v"), "the key is empty"),
        (("put", "project", "k" * 513, "v"), "has 513 bytes"),
        (("put", "project", "k", "--file", "."), "cannot be read"),
    ],
)
def test_a_put_that_cannot_be_right_says_what_is_allowed(cli: Cli, arguments: tuple[str, ...], told: str) -> None:
    assert told in cli(*arguments, code=2).err


def test_a_refused_scope_is_told_before_stdin_is_read(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with open(reading) as nobody_writes:
        monkeypatch.setattr("typer.testing.make_input_stream", lambda *_: nobody_writes.buffer)

        assert "read_only" in cli("put", "system", "k", code=6).err
    os.close(writing)


def test_get_as_json_holds_text_as_text_and_bytes_as_base64(cli: Cli) -> None:
    cli("put", "artifacts", "text", "Grüße")
    cli("put", "artifacts", "binary", stdin=BINARY)

    text, binary = (cli("get", "artifacts", key, "--json").json for key in ("text", "binary"))

    assert (text["key"], text["value"], "value_base64" in text) == ("text", "Grüße", False)
    assert (base64.b64decode(binary["value_base64"]), binary["size"], "value" in binary) == (BINARY, 256, False)


def test_get_writes_the_value_to_a_file_and_says_so_on_stderr(cli: Cli, tmp_path: Path) -> None:
    cli("put", "artifacts", "k", stdin=BINARY)

    ran = cli("get", "artifacts", "k", "--output", str(tmp_path / "out"))

    assert ((tmp_path / "out").read_bytes(), ran.out, ran.err) == (BINARY, b"", f"wrote 256 B to {tmp_path}/out\n")


def test_get_to_a_file_as_json_tells_the_facts_without_the_value(cli: Cli, tmp_path: Path) -> None:
    cli("put", "artifacts", "k", "v")

    info = cli("get", "artifacts", "k", "--output", str(tmp_path / "out"), "--json").json

    assert (info["output"], info["digest"], "value" in info) == (str(tmp_path / "out"), digest(b"v"), False)


def test_get_to_a_folder_that_is_not_there_is_a_clear_error(cli: Cli) -> None:
    cli("put", "artifacts", "k", "v")

    assert "its folder exists" in cli("get", "artifacts", "k", "--output", "none/out", code=2).err


# delete and list


def test_delete_says_what_was_deleted(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    cli("put", "project", "j", "v")

    text = cli("delete", "project", "k").text
    assert text.startswith("deleted project 'k' 1 B text/plain sha256:")
    assert text.endswith("\nundo it within 24 hours: iris-kv restore-entry project KEY\n")
    assert cli("delete", "project", "j", "--json").json["digest"] == digest(b"v")
    cli("get", "project", "k", code=3)


def test_delete_of_another_generation_deletes_nothing(cli: Cli) -> None:
    cli("put", "project", "k", "v")

    cli("delete", "project", "k", "--if-digest", digest(b"other"), code=4)

    assert cli("get", "project", "k").out == b"v"


def test_list_shows_the_keys_of_a_prefix_in_order(cli: Cli) -> None:
    for key in ("b/2", "a", "b/1"):
        cli("put", "project", key, "v")

    assert [info["key"] for info in cli("list", "project", "--prefix", "b/", "--json").json] == ["b/1", "b/2"]
    assert [line.split()[1] for line in cli("list", "project").text.splitlines()] == ["'a'", "'b/1'", "'b/2'"]


def test_list_of_an_empty_scope_says_so_in_text_and_is_empty_in_json(cli: Cli) -> None:
    cli("put", "task", "k", "v")

    assert (cli("list", "project").text, cli("list", "project", "--json").json) == ("no entries in project\n", [])


def test_list_shows_expired_entries_only_where_they_are_asked_for(cli: Cli) -> None:
    cli("put", "project", "k", "v", "--ttl-hours", "1e-9")

    assert cli("list", "project", "--json").json == []
    assert [info["key"] for info in cli("list", "project", "--include-expired", "--json").json] == ["k"]


async def fill(workspace: Path, keys: list[str]) -> None:
    """Put many entries, faster than a verb each."""
    store = await FileStore.open(workspace, clock=SystemClock(), durable=False)
    limits = Limits(quota_bytes=10**9, max_value_bytes=10**6, ttl_ms=None, renew=False)
    by = Provenance(author="user", face="library")
    for key in keys:
        await store.put("project", key, b"v", content_type="text/plain", limits=limits, provenance=by)
    await store.aclose()


def test_list_goes_on_over_every_page(cli: Cli) -> None:
    import anyio  # noqa: PLC0415 - the verbs run their own loop, so the test is not async

    keys = [f"{n:04}" for n in range(501)]
    anyio.run(fill, cli.workspace, keys)

    assert [info["key"] for info in cli("list", "project", "--json").json] == keys


def test_hostile_keys_are_keys_like_any_other(cli: Cli) -> None:
    for key in HOSTILE_KEYS:
        cli("put", "artifacts", "--json", "--", key, f"value of {key}")

    assert [cli("get", "artifacts", "--", key).text for key in HOSTILE_KEYS] == [f"value of {k}" for k in HOSTILE_KEYS]
    listed = [info["key"] for info in cli("list", "artifacts", "--json").json]
    assert listed == sorted(HOSTILE_KEYS, key=str.encode)
    assert sorted(path.name for path in cli.workspace.iterdir()) == [".iris"]


# stats, prune, clear, seed, verify


def test_stats_says_in_text_and_in_json_what_each_scope_holds(cli: Cli) -> None:
    cli.configure("[scopes.project]\nquota_mb = 2\n")
    cli("put", "project", "k", "v" * 1500)

    data = cli("stats", "--json").json
    lines = cli("stats").text.splitlines()

    assert [each["scope"] for each in data["scopes"]] == SCOPE_NAMES
    project = {
        "scope": "project",
        "entries": 1,
        "bytes": 1500,
        "kept": 0,
        "kept_bytes": 0,
        "quota_bytes": 2_000_000,
        "ttl_hours": None,
    }
    assert data["scopes"][2] == project
    assert lines[2].split() == ["project", "1", "entries", "1.5", "kB", "of", "2.0", "MB"]
    assert lines[-1] == "4 instructions; prompt compact (phase_on in prompts/rollout.toml)"


def test_stats_shows_what_is_wrong_with_an_instruction_file(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    overlay = cli.workspace / ".iris" / "instructions"
    overlay.mkdir()
    (overlay / "bad.md").write_text("no front matter")

    assert "error in .iris/instructions/bad.md: has no front matter" in cli("stats").text
    assert [e["file"] for e in cli("stats", "--json").json["instruction_errors"]] == [".iris/instructions/bad.md"]


def test_prune_removes_what_expired_and_nothing_else(cli: Cli) -> None:
    cli("put", "project", "old", "12345", "--ttl-hours", "1e-9")
    cli("put", "project", "new", "v")

    assert cli("prune", "task").text == "removed 0 expired entries (0 B)\n"
    assert cli("prune", "--json").json == {"entries": 1, "bytes": 5}
    assert [info["key"] for info in cli("list", "project", "--include-expired", "--json").json] == ["new"]


def test_clear_without_a_terminal_needs_yes(cli: Cli) -> None:
    cli("put", "project", "k", "v")

    assert "add --yes" in cli("clear", "project", code=2).err
    assert cli("get", "project", "k").out == b"v"


def test_clear_empties_one_scope(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    cli("put", "task", "k", "v")

    assert cli("clear", "project", "--yes").text == (
        "cleared project: 1 entries (1 B)\nundo it within 24 hours: iris-kv history project lists the keys,"
        " iris-kv restore-entry project KEY restores one\n"
    )
    assert cli("clear", "task", "--yes", "--json").json == {"entries": 1, "bytes": 1}


@pytest.mark.parametrize(("scope", "code"), [("system", 6), ("bogus", 2)])
def test_clear_refuses_a_scope_before_it_asks(cli: Cli, scope: str, code: int) -> None:
    assert "--yes" not in cli("clear", scope, code=code).err


def test_seed_writes_instructions_and_prompts_once(cli: Cli) -> None:
    first, second = (cli("seed", "--json").json for _ in range(2))

    assert (len(first["written"]), first["unchanged"]) == (6, [])
    assert (second["written"], second["unchanged"]) == ([], first["written"])
    assert cli("seed").text.splitlines()[0] == "written 0"
    provenance = cli("get", "instructions", "research", "--json").json["provenance"]
    assert provenance == {"author": "canonical", "face": "seeder"}


def test_seed_keeps_what_another_source_wrote_unless_forced(cli: Cli, tmp_path: Path) -> None:
    cli("seed")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "research.md").write_text("---\nname: research\ndescription: Mine. Use it.\n---\nMine.\n")

    kept = cli("seed", "--instructions", "../mine", "--json").json["kept"]
    forced = cli("seed", "--instructions", "../mine", "--force", "--json").json["written"]

    assert "instructions/research" in kept
    assert "instructions/research" in forced
    assert cli("get", "instructions", "research").text.endswith("Mine.\n")


def test_seed_tells_on_stderr_which_files_are_wrong(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bad.md").write_text("no front matter")

    assert "bad.md: has no front matter" in cli("seed", "--instructions", "../mine").err


def test_verify_reads_every_value(cli: Cli) -> None:
    cli("put", "project", "k", "123")
    cli("put", "task", "k", "4")

    assert cli("verify").text == "verified 2 entries (4 B), 0 damaged\n"
    sound = {"entries": 1, "bytes": 1, "kept": 0, "damaged": [], "usage_matches": True, "repair": None}
    assert cli("verify", "task", "--json").json == sound


def test_verify_ends_with_7_where_a_byte_was_flipped(cli: Cli) -> None:
    cli("put", "project", "k", "123")
    cli.flip_byte("project")

    text = cli("verify", code=7)
    data = cli("verify", "--json", code=7)

    assert text.text.startswith("damaged: project 'k': ")
    assert "1 of 1 entries are damaged" in text.err
    assert [(each["scope"], each["key"]) for each in data.json["damaged"]] == [("project", "k")]
    assert json.loads(data.err)["error"]["code"] == "corrupt"


def test_repair_makes_a_damaged_index_anew_and_says_what_came_of_it(cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    cli("put", "project", "k", "123")
    cli("put", "task", "l", "4567")
    assert cli("repair").text == "the index is sound\n"
    cli.flip_byte("project")
    (cli.workspace / ".iris/kv-cache/.store/index.db").write_bytes(b"garbage" * 1000)

    done = cli("repair")

    assert done.text.splitlines() == [
        "the index was made anew, as it was lost or damaged",
        "2 entries, 0 older or deleted versions",
        "1 files that are no whole value are in .iris/kv-cache/.store/quarantine",
        "damaged: project 'k': its file is lost or does not match its digest",
    ]
    assert "the index of this cache is lost or damaged: making it anew from 2 files" in caplog.messages
    assert cli("get", "task", "l").text == "4567"
    assert cli("repair", "--json").json == {"problem": None, "rebuilt": None}


def test_a_backup_can_be_restored(cli: Cli, tmp_path: Path) -> None:
    archive = str(tmp_path / "store.tar")
    cli("put", "project", "k", "123")
    assert cli("backup", archive).text == "backed up 1 entries (3 B)\n"
    cli("put", "project", "k", "other")

    assert cli("restore", archive).text == "restored 1 entries (3 B)\n"
    assert cli("get", "project", "k").text == "123"
    assert cli("backup", archive, "--json").json == {"entries": 1, "bytes": 3, "damaged": []}
    assert cli("restore", archive, "--json").json == {"entries": 1, "bytes": 3, "damaged": []}


def test_a_backup_without_a_damaged_value_ends_with_7(cli: Cli, tmp_path: Path) -> None:
    cli("put", "project", "k", "123")
    cli.flip_byte("project")

    done = cli("backup", str(tmp_path / "store.tar"), code=7)

    assert done.text == "not in it, as damaged before: project 'k'\nbacked up 0 entries (0 B)\n"
    assert "1 damaged entries are not in the archive" in done.err


def test_what_is_no_archive_is_not_restored(cli: Cli, tmp_path: Path) -> None:
    cli("put", "project", "k", "123")
    (tmp_path / "notes.txt").write_text("notes")

    assert "the archive cannot be restored" in cli("restore", str(tmp_path / "notes.txt"), code=2).err
    assert "the archive cannot be restored" in cli("restore", str(tmp_path / "nowhere"), code=2).err
    assert cli("get", "project", "k").text == "123"


def test_verify_mends_what_is_wrong_with_the_index_if_asked(cli: Cli) -> None:
    cli("put", "project", "k", "123")
    with sqlite3.connect(cli.workspace / ".iris/kv-cache/.store/index.db") as index:
        index.execute("UPDATE entry SET content_type = 'text/html'")
    index.close()

    text = cli("verify", "--repair").text

    assert "the index was made anew, as a row of it is not what was written\n" in text
    assert text.endswith("verified 1 entries (3 B), 0 damaged\n")


# How verbs fail


def make_cache_newer(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    with sqlite3.connect(cli.workspace / ".iris" / "kv-cache" / ".store" / "index.db") as index:
        index.execute("PRAGMA user_version = 999")
    index.close()


def make_cache_a_link(cli: Cli) -> None:
    (cli.workspace / ".iris").mkdir()
    (cli.workspace / ".iris" / "kv-cache").symlink_to(cli.home)


def make_value_corrupt(cli: Cli) -> None:
    cli("put", "project", "k", "v")
    cli.flip_byte("project")


def make_value_expire(cli: Cli) -> None:
    cli("put", "project", "k", "v", "--ttl-hours", "1e-9")


def make_room_small(cli: Cli) -> None:
    cli.configure("max_value_mb = 0.00001\n[scopes.project]\nquota_mb = 0.00001\n")
    cli("put", "project", "other", "12345")


FAILURES: dict[Code, tuple[object, tuple[str, ...]]] = {
    "invalid_argument": (None, ("put", "bogus", "k", "v")),
    "not_found": (None, ("get", "project", "k")),
    "expired": (make_value_expire, ("get", "project", "k")),
    "conflict": (None, ("put", "project", "k", "v", "--if-digest", digest(b"v"))),
    "quota_exceeded": (make_room_small, ("put", "project", "k", "123456")),
    "too_large": (make_room_small, ("put", "project", "k", "12345678901")),
    "read_only": (None, ("delete", "instructions", "k")),
    "forbidden": (make_cache_a_link, ("get", "project", "k")),
    "corrupt": (make_value_corrupt, ("get", "project", "k")),
    "unavailable": (make_cache_newer, ("get", "project", "k")),
}


@pytest.mark.parametrize("code", FAILURES)
def test_an_error_is_told_on_stderr_alone_and_ends_with_its_exit_code(cli: Cli, code: Code) -> None:
    prepare, arguments = FAILURES[code]
    if callable(prepare):
        prepare(cli)

    text = cli(*arguments, code=EXIT_CODES[code])
    data = cli(*arguments, "--json", code=EXIT_CODES[code])

    assert (text.out, data.out) == (b"", b"")
    assert text.err.startswith(f"iris-kv: {code}: ")
    assert text.err.count("\n") == 1
    error = json.loads(data.err)["error"]
    assert f"iris-kv: {code}: {error['wrong']}; {error['allowed']}; {error['todo']}\n" == text.err
    assert error["code"] == code


def test_the_exit_codes_are_those_of_the_design() -> None:
    by_exit = {2: "invalid_argument", 4: "conflict", 7: "corrupt"}
    pairs = {
        3: ("not_found", "expired"),
        5: ("quota_exceeded", "too_large"),
        6: ("read_only", "unauthorized", "forbidden"),
    }

    for exit_code, code in by_exit.items():
        assert [each for each, number in EXIT_CODES.items() if number == exit_code] == [code]
    for exit_code, codes in {**pairs, 8: ("busy", "unavailable", "uncertain")}.items():
        assert tuple(each for each, number in EXIT_CODES.items() if number == exit_code) == codes
    assert set(EXIT_CODES) == set(get_args(Code))


@pytest.mark.parametrize("verb", ["get", "delete", "list", "stats", "prune", "verify", "repair", "backup"])
def test_a_verb_that_only_reads_creates_no_cache(cli: Cli, verb: str) -> None:
    arguments = {"get": ("project", "k"), "delete": ("project", "k"), "list": ("project",), "backup": ("x.tar",)}

    assert "this workspace has no cache yet" in cli(verb, *arguments.get(verb, ()), code=3).err
    assert list(cli.workspace.iterdir()) == []


VERBS = [
    (), ("serve",), ("demo",), ("prompt",), ("instructions",), ("instructions", "list"), ("instructions", "show"),
    ("instructions", "check"), ("get",), ("put",), ("delete",), ("list",), ("stats",), ("prune",), ("clear",),
    ("seed",), ("verify",), ("repair",), ("backup",), ("restore",), ("config",), ("doctor",),
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_plain_help(cli: Cli, verb: tuple[str, ...]) -> None:
    help_text = cli(*verb, "--help").text

    assert help_text.startswith(" ".join(("Usage: iris-kv", *verb)))
    assert help_text.isascii()
    assert max(map(len, help_text.splitlines())) <= 80
    _, _, commands = help_text.partition("Commands:")
    assert "..." not in commands


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bogus",), "No such command 'bogus'."),
        (("get", "--bogus"), "No such option: --bogus"),
        (("get", "project"), "Missing argument 'key'."),
        (("put", "project", "k", "v", "--ttl-hours", "soon"), "Invalid value for '--ttl-hours'"),
        (("get", "project", "-k"), "No such option: -k"),
        (("config", "--client", "emacs"), "Invalid value for '--client'"),
    ],
)
def test_an_unknown_verb_or_option_ends_with_2_and_plain_text(cli: Cli, arguments: tuple[str, ...], told: str) -> None:
    ran = cli(*arguments, code=2)

    assert ran.out == b""
    assert told in ran.err
    assert ran.err.isascii()
