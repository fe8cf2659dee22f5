"""Names, keys, metadata, front matter, URIs and arguments of any kind: an answer or an error of ours, nothing else."""

from __future__ import annotations

import asyncio
import re
import shlex
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from iris_kv.cli import app
from iris_kv.errors import IrisError
from iris_kv.instruction_file import InstructionSource, check_file, find_sections
from iris_kv.model import SCOPES, Limits, Provenance
from iris_kv.store.files import FileStore
from iris_kv.store.names import check_key, content_type_of, seq_of, slug, value_file
from iris_kv.surfaces.uris import SCHEME, entry_uri, parse

LIMITS = Limits(quota_bytes=10**9, max_value_bytes=10**6, ttl_ms=None, renew=False)
BY = Provenance(author="agent", face="mcp")
ODD = st.sampled_from(
    [
        "..",
        "/",
        "\\",
        "%00",
        "%",
        "\x00",
        "\n",
        "\u202e",
        "\ud800",
        "é",
        "e\u0301",
        "CON",
        "nul.txt",
        ".index.json",
        ".tmp-",
        "-",
        "--",
        "~",
        "a" * 600,
    ]
)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(st.one_of(ODD, st.text(max_size=5)), max_size=6).map("".join),
    st.characters().map(str),
)
WIDE = settings(suppress_health_check=list(HealthCheck), max_examples=200)
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
SHELL_WORDS = [
    "get",
    "put",
    "delete",
    "list",
    "stats",
    "prune",
    "verify",
    "repair",
    "history",
    "check",
    "--json",
    "--scope",
    "-",
    "--",
    "task",
    "--version",
    "doctor",
    "rollout",
    "token",
    "prompt",
    "instructions",
]


def is_ours(work, *arguments: object) -> object:
    """Return what it gives; None where it refuses with an error of ours, which is text and short."""
    try:
        return work(*arguments)
    except IrisError as error:
        assert str(error).isprintable() or "\n" in str(error)
        str(error).encode()
        assert len(str(error)) < 10_000
        return None


@WIDE
@given(st.sampled_from(SCOPES), TEXTS, st.integers(0, 1 << 53), TEXTS)
def test_any_accepted_key_makes_a_plain_name(scope, key, seq, content_type):
    if is_ours(lambda: check_key(key) or key) is None:
        return
    name = value_file(scope, key, seq, content_type)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*__[0-9a-f]{8}-[0-9a-z]+\.[a-z]+", name)
    assert len(name.encode()) <= 80
    assert not RESERVED.fullmatch(name)
    assert seq_of(name) == seq
    assert slug(key) == slug(unicodedata.normalize("NFC", key))


@WIDE
@given(TEXTS)
def test_any_name_of_a_file_has_a_number_or_none(name):
    assert seq_of(name) is None or seq_of(name) >= 0
    assert content_type_of(name) is None or "/" in content_type_of(name)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[tuple[asyncio.Runner, FileStore]]:
    class StandingClock:
        def now_ms(self) -> int:
            return 1_767_225_600_000

    with asyncio.Runner() as runner:
        opened = runner.run(FileStore.open(tmp_path_factory.mktemp("fuzz"), clock=StandingClock(), durable=False))
        yield runner, opened
        runner.run(opened.aclose())


@WIDE
@given(
    TEXTS,
    st.binary(max_size=200),
    st.dictionaries(TEXTS, TEXTS, max_size=4),
    st.one_of(st.none(), st.integers(-(10**20), 10**20)),
    st.one_of(st.just("text/plain"), TEXTS),
    st.one_of(st.none(), st.just(""), TEXTS),
)
def test_any_put_is_read_back_as_it_was_or_refused(store, key, value, metadata, ttl_ms, content_type, if_digest):
    async def put_and_get():
        opened = store[1]
        written = await opened.put(
            "task",
            key,
            value,
            content_type=content_type,
            limits=LIMITS,
            provenance=BY,
            ttl_ms=ttl_ms,
            metadata=metadata,
            if_digest=if_digest,
        )
        found = await opened.get("task", key)
        assert (found.info.key, found.value, found.info.metadata) == (key, value, metadata)
        assert found.info == written
        assert key in [info.key for info in (await opened.list("task", prefix=key)).entries]
        await opened.delete("task", key)

    is_ours(lambda: store[0].run(put_and_get()))


FRONT = st.one_of(
    st.binary(max_size=300),
    TEXTS.map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(
        st.tuples(
            st.sampled_from(["name", "description", "metadata", "metadata:\n  version", "x", "? ", "- "]),
            st.one_of(
                TEXTS,
                st.sampled_from(
                    [
                        "&a [*a]",
                        "!!python/object:os.system",
                        "{" * 50,
                        "'",
                        "|",
                        "1e999",
                        "0x1",
                        "!!binary x",
                        "2026-01-01",
                        "~",
                    ]
                ),
            ),
        ),
        max_size=6,
    ).map(lambda pairs: "\n".join(f"{name}: {value}" for name, value in pairs).encode(errors="surrogatepass")),
)


@WIDE
@given(FRONT, st.binary(max_size=200), st.sampled_from([b"\n", b"\r\n", b"\r"]), TEXTS)
def test_any_file_is_an_instruction_or_says_what_is_wrong(front, body, newline, name):
    source = InstructionSource(folder=Path("/nowhere"), origin="workspace", label="here")
    raw = newline.join([b"---", front, b"---", body])
    for given_raw in (raw, front, raw[:-1], b"\xef\xbb\xbf" + raw):
        found = check_file(source, name.replace("/", "") + ".md", given_raw)
        assert (found.fields is None) == bool(found.problems)
        if found.fields is not None:
            assert given_raw.endswith(found.body)
            assert all(0 <= each.start < each.end <= len(found.body) for each in find_sections(found.body))


@WIDE
@given(
    st.one_of(
        TEXTS,
        st.tuples(
            st.sampled_from(["cache/", "cache/task/", "instructions/", "prompt/", "stats", ""]),
            TEXTS,
            st.sampled_from(["", "?", "?offset=", "?max_tokens=1&", "#"]),
            TEXTS,
        ).map(lambda parts: SCHEME + "".join(parts)),
    )
)
def test_any_uri_names_something_or_is_refused(uri):
    is_ours(parse, uri)


@WIDE
@given(st.sampled_from(SCOPES), TEXTS)
def test_the_uri_of_any_key_leads_back_to_it(scope, key):
    if is_ours(lambda: check_key(key) or key) is None:
        return
    found = parse(entry_uri(scope, key))
    assert (found.kind, found.scope, found.name) == ("cache", scope, key)


@settings(suppress_health_check=list(HealthCheck), max_examples=60)
@given(
    st.lists(st.one_of(st.sampled_from(SHELL_WORDS), TEXTS), max_size=5),
    st.one_of(st.just(b""), st.binary(max_size=50)),
)
def test_any_arguments_end_with_a_code_of_the_table(words, given_input):
    # A server would run on, and a shell cannot pass these.
    words = [word for word in words if "\0" not in word and not re.search("[\ud800-\udfff]", word)]
    if words[:1] and words[0] in {"serve", "demo", "split"}:
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_STATE_HOME": folder, "IRIS_KV_WORKSPACE": folder}
        answer = CliRunner().invoke(app, words, input=given_input, env=environment)
    assert answer.exception is None or isinstance(answer.exception, SystemExit), (shlex.join(words), answer.exception)
    assert answer.exit_code in {0, 1, 2, 3, 4, 5, 6, 7, 8}
    assert "Traceback" not in answer.output
