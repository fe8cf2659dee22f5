"""REST on one value: byte for byte there and back, conditional, in part, and refused."""

from __future__ import annotations

import hashlib
import json
from urllib.parse import quote

import anyio
import pytest
from tests.conftest import Clock
from tests.surfaces.http.conftest import CACHE, OpenHttp
from tests.surfaces.test_cli_verbs import BINARY, HOSTILE_KEYS

from iris_kv.policy import RIGHTS
from iris_kv.settings import ScopeSettings, ScopesSettings, Settings

HOUR_MS = 3_600_000


def digest(value: bytes) -> str:
    return "sha256:" + hashlib.sha256(value).hexdigest()


def etag(value: bytes) -> str:
    return f'"{digest(value)}"'


# There and back


@pytest.mark.parametrize("value", [b"", BINARY, "Grüße\r\n".encode(), b"\0" * 10, bytes(range(256)) * 40_000])
async def test_a_raw_value_comes_back_byte_for_byte(open_http: OpenHttp, value: bytes) -> None:
    async with open_http() as http:
        written = await http.put("k", value, headers={"Content-Type": "application/octet-stream"})
        read = await http.value("k")

    assert written.status_code == 201
    assert written.headers["etag"] == read.headers["etag"] == etag(value)
    assert written.json()["digest"] == digest(value)
    assert read.status_code == 200
    assert read.content == value
    assert read.headers["content-length"] == str(len(value))
    assert read.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("key", HOSTILE_KEYS)
async def test_a_hostile_key_is_a_key_like_any_other(open_http: OpenHttp, key: str) -> None:
    async with open_http() as http:
        written = await http.put(key, key)
        assert written.status_code == 201, written.text
        assert (await http.get(written.headers["location"])).content == key.encode()
        assert [each["key"] for each in (await http.keys())["entries"]] == [key]
        deleted = await http.request("DELETE", f"{CACHE}/value", params={"scope": "artifacts", "key": key})
        assert deleted.json()["key"] == key
        assert (await http.value(key)).status_code == 404


async def test_a_json_body_carries_all_there_is(open_http: OpenHttp) -> None:
    body = {"value": "# Hi\n", "content_type": "text/markdown", "ttl_hours": 2, "metadata": {"kind": "nöte"}}
    async with open_http() as http:
        written = await http.post(f"{CACHE}/value", params={"scope": "artifacts", "key": "k"}, json=body)
        read = await http.value("k")

    info = written.json()
    assert (info["content_type"], info["ttl_ms"], info["metadata"]) == ("text/markdown", 2 * HOUR_MS, {"kind": "nöte"})
    assert info["provenance"] == {"author": "user", "face": "rest"}
    assert read.text == "# Hi\n"


async def test_an_object_as_a_value_is_stored_as_its_json(open_http: OpenHttp) -> None:
    async with open_http() as http:
        address = {"scope": "artifacts", "key": "k"}
        await http.post(f"{CACHE}/value", params=address, json={"value": {"a": [1, "é"]}})
        read = await http.value("k")

    assert read.headers["content-type"] == "application/json"
    assert read.json() == {"a": [1, "é"]}


async def test_json_is_stored_as_it_is_where_it_is_raw(open_http: OpenHttp) -> None:
    value = b'{ "value" : 1.0 }\n'
    async with open_http() as http:
        await http.put("k", value, headers={"Content-Type": "application/json"}, raw="true")
        await http.put("other", value, headers={"Content-Type": "application/ld+json"})

        assert (await http.value("k")).content == (await http.value("other")).content == value


async def test_what_is_known_of_an_entry_stands_in_its_headers(open_http: OpenHttp, clock: Clock) -> None:
    metadata = {"ключ": "line\r\nSet-Cookie: x=1\x7f", "k": "é"}
    async with open_http(clock=clock) as http:
        query = {"metadata": json.dumps(metadata), "ttl_hours": 1}
        assert (await http.put("k", b"v", **query)).status_code == 201
        got = await http.value("k")
        head = await http.head(f"{CACHE}/value", params={"scope": "artifacts", "key": "k"})
        (listed,) = (await http.keys())["entries"]

    entry = json.loads(got.headers["iris-kv-entry"])
    assert entry == listed
    assert (entry["metadata"], entry["ttl_ms"], entry["version"]) == (metadata, HOUR_MS, 1)
    assert entry["expires_at"] == "2026-01-01T01:00:00.000Z"
    assert "set-cookie" not in got.headers
    assert dict(head.headers) == dict(got.headers)
    assert head.content == b""


@pytest.mark.parametrize("metadata", [{"k": "é" * 2_000}, {"k": "\x7f" * 3_600}])
async def test_metadata_too_long_for_a_header_are_told_with_the_keys(
    open_http: OpenHttp, metadata: dict[str, str]
) -> None:
    async with open_http() as http:
        body = {"value": "v", "metadata": metadata}
        await http.post(f"{CACHE}/value", params={"scope": "artifacts", "key": "k"}, json=body)

        entry = json.loads((await http.value("k")).headers["iris-kv-entry"])
        assert entry["key"] == "k"
        assert "metadata" not in entry
        assert (await http.keys())["entries"][0]["metadata"] == metadata


async def test_a_stored_page_cannot_run_in_the_origin_of_the_api(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", "<script>alert(1)</script>", headers={"Content-Type": "text/html"})
        headers = (await http.value("k")).headers

    assert headers["content-type"] == "text/html"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "attachment"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_an_expired_value_is_gone(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        await http.put("k", scope="project", ttl_hours=1)
        clock.move(HOUR_MS)
        answer = await http.value("k", scope="project")

    assert (answer.status_code, answer.json()["code"]) == (404, "expired")


async def test_a_write_over_an_expired_value_creates(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        await http.put("k", scope="project", ttl_hours=1)
        clock.move(HOUR_MS)

        assert (await http.put("k", scope="project", headers={"If-None-Match": "*"})).status_code == 201


# Conditional


async def test_a_client_that_has_the_value_gets_none(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", b"v")
        for given in (etag(b"v"), f"W/{etag(b'v')}", f'"x", {etag(b"v")}', "*"):
            answer = await http.value("k", If_None_Match=given)
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == etag(b"v")
        assert (await http.value("k", If_None_Match='"x"')).status_code == 200
        head = await http.head(
            f"{CACHE}/value", params={"scope": "artifacts", "key": "k"}, headers={"If-None-Match": etag(b"v")}
        )
        assert head.status_code == 304


async def test_a_write_with_an_etag_happens_only_over_it(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", b"1")
        assert (await http.put("k", b"2", headers={"If-Match": etag(b"0")})).status_code == 412
        assert (await http.put("k", b"2", headers={"If-Match": etag(b"1")[:24] + '"'})).status_code == 412
        assert (await http.put("k", b"2", headers={"If-Match": f"W/{etag(b'1')}"})).status_code == 412
        assert (await http.put("absent", b"2", headers={"If-Match": etag(b"1")})).status_code == 412
        assert (await http.put("absent", b"2", headers={"If-Match": "*"})).status_code == 412
        assert (await http.put("k", b"2", headers={"If-Match": etag(b"1")})).status_code == 200
        assert (await http.put("k", b"3", headers={"If-Match": f'"x", {etag(b"2")}'})).status_code == 200
        assert (await http.put("k", b"4", headers={"If-Match": "*"})).status_code == 200
        assert (await http.value("k")).content == b"4"


async def test_a_write_is_told_as_one_whatever_it_pushed_out_or_expires_at_once(open_http: OpenHttp) -> None:
    half = b"v" * 600_000
    settings = Settings(durability="fast", scopes=ScopesSettings(artifacts=ScopeSettings(quota_mb=1, ttl_hours=1)))
    async with open_http(settings=settings) as http:
        statuses = [(await http.put("k", text)).status_code for text in (b"1", b"2")]
        await http.delete(f"{CACHE}/value", params={"scope": "artifacts", "key": "k"})
        again = await http.put("k", half)
        await http.delete(f"{CACHE}/value", params={"scope": "artifacts", "key": "k"})
        # There is no room for what was deleted beside it, so that nothing is kept when it is answered.
        pushing = await http.put("k", half + b"+", ttl_hours=1e-9)

    assert statuses == [201, 200]
    assert (again.status_code, pushing.status_code) == (201, 201)
    assert "location" in again.headers
    assert "location" in pushing.headers


async def test_a_write_only_if_absent_happens_once(open_http: OpenHttp) -> None:
    async with open_http() as http:
        answers = [await http.put("k", text, headers={"If-None-Match": "*"}) for text in ("1", "2")]

        assert [each.status_code for each in answers] == [201, 412]
        assert answers[1].json()["code"] == "conflict"
        assert (await http.value("k")).content == b"1"


@pytest.mark.parametrize(
    "headers",
    [
        {"If-None-Match": etag(b"v")},
        {"If-None-Match": "*", "If-Match": "*"},
        {"If-Match": "no quotes"},
        {"If-Match": ""},
        {"If-Match": '"' * 9_000},
    ],
    ids=str,
)
async def test_a_write_with_a_condition_that_cannot_be_is_refused(open_http: OpenHttp, headers: dict[str, str]) -> None:
    async with open_http() as http:
        answer = await http.put("k", headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_argument")


async def test_of_writes_over_the_same_etag_exactly_one_wins(open_http: OpenHttp) -> None:
    statuses: list[int] = []
    async with open_http() as http:
        await http.put("k", b"start")

        async def write(n: int) -> None:
            statuses.append((await http.put("k", str(n), headers={"If-Match": etag(b"start")})).status_code)

        async with anyio.create_task_group() as tasks:
            for n in range(20):
                tasks.start_soon(write, n)

    assert sorted(statuses) == [200] + [412] * 19


async def test_a_deletion_with_an_etag_happens_only_over_it(open_http: OpenHttp) -> None:
    address = {"scope": "artifacts", "key": "k"}
    async with open_http() as http:
        await http.put("k", b"1")
        for given, status in ((etag(b"0"), 412), ('"x"', 412), (etag(b"1"), 200), (etag(b"1"), 404), ("*", 412)):
            answer = await http.delete(f"{CACHE}/value", params=address, headers={"If-Match": given})
            assert answer.status_code == status


# In part


@pytest.mark.parametrize(
    ("asked", "part", "which"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=8-", b"89", "bytes 8-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("BYTES = 1-1", b"1", "bytes 1-1/10"),
    ],
)
async def test_a_range_of_bytes_is_served(open_http: OpenHttp, asked: str, part: bytes, which: str) -> None:
    async with open_http() as http:
        await http.put("k", b"0123456789")
        answer = await http.value("k", Range=asked)

    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, part, which)
    assert answer.headers["content-length"] == str(len(part))
    assert answer.headers["etag"] == etag(b"0123456789")


@pytest.mark.parametrize("asked", ["bytes=1-2,4-5", "bytes=5-2", "bytes=", "bytes=-", "lines=1-2", "bytes=a-b", "x"])
async def test_a_range_that_is_not_understood_is_ignored(open_http: OpenHttp, asked: str) -> None:
    async with open_http() as http:
        await http.put("k", b"0123456789")
        answer = await http.value("k", Range=asked)

    assert (answer.status_code, answer.content) == (200, b"0123456789")


@pytest.mark.parametrize(("value", "asked"), [(b"0123456789", "bytes=10-"), (b"0", "bytes=-0"), (b"", "bytes=0-")])
async def test_a_range_behind_the_end_is_refused(open_http: OpenHttp, value: bytes, asked: str) -> None:
    async with open_http() as http:
        await http.put("k", value)
        answer = await http.value("k", Range=asked)

    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(value)}"


async def test_the_last_bytes_of_nothing_are_nothing(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", b"")
        answer = await http.value("k", Range="bytes=-5")

    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_range_goes_on_only_in_the_same_version(open_http: OpenHttp) -> None:
    async with open_http() as http:
        await http.put("k", b"0123456789")
        same = await http.value("k", Range="bytes=5-", If_Range=etag(b"0123456789"))
        for given in (etag(b"other"), f"W/{etag(b'0123456789')}", "Wed, 21 Oct 2015 07:28:00 GMT"):
            assert (await http.value("k", Range="bytes=5-", If_Range=given)).status_code == 200

    assert (same.status_code, same.content) == (206, b"56789")


# Refused


@pytest.mark.parametrize(
    "query",
    [
        "key=%00",
        "key=a%0Ab",
        "key=%",
        "key=%zz",
        "key=100%",
        "key=%C3",
        "key=%ED%A0%80",
        "key=" + "x" * 513,
        "key=" + quote("é" * 257),
        "key=",
        "",
        "key=a&key=b",
        "key=a&kee=b",
    ],
)
async def test_a_key_that_is_none_is_refused(open_http: OpenHttp, query: str) -> None:
    async with open_http() as http:
        for method in ("GET", "POST", "DELETE"):
            url, kind = f"{CACHE}/value?scope=artifacts&{query}", {"Content-Type": "text/plain"}
            answer = await http.request(method, url, headers=kind)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_argument"), (method, answer.text)
        assert (await http.head(f"{CACHE}/value?scope=artifacts&{query}")).status_code == 422


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {"Content-Type": "application/json"}, 422, "JSON"),
        (b"\xff", {"Content-Type": "application/json"}, 422, "JSON"),
        (b'{"value":"\\ud800"}', {"Content-Type": "application/json"}, 422, "JSON"),
        (b"[]", {"Content-Type": "application/json"}, 422, "the body"),
        (b"{}", {"Content-Type": "application/json"}, 422, "'value' is missing"),
        (b'{"value":1}', {"Content-Type": "application/json"}, 422, "value"),
        (b'{"value":"v","valeu":1}', {"Content-Type": "application/json"}, 422, "did you mean 'value'"),
        (b'{"value":"v","ttl_hours":0}', {"Content-Type": "application/json"}, 422, "ttl_hours"),
        (b'{"value":"v","ttl_hours":NaN}', {"Content-Type": "application/json"}, 422, "ttl_hours"),
        (
            b'{"value":"v","content_type":"text/html\\r\\nX-Evil: 1"}',
            {"Content-Type": "application/json"},
            422,
            "media",
        ),
        (b'{"value":"{","content_type":"application/json"}', {"Content-Type": "application/json"}, 422, "parse"),
        (b"{", {"Content-Type": "application/ld+json"}, 422, "does not parse"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "form"),
        (b"a=b", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "form"),
        (b"v", {"Content-Type": "nonsense"}, 415, "media type"),
        (b"v", {"Content-Type": "text/html; a\tb"}, 415, "media type"),
        (b"v", {"Content-Type": ""}, 415, "media type"),
        (b"v", {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, 415, "send it plain"),
        (b'{"value":"v"}', {"Content-Type": "application/json", "Content-Encoding": "br"}, 415, "send it plain"),
        (b'{"value":[1e999]}', {"Content-Type": "application/json"}, 422, "a number that JSON cannot express"),
        (b'{"value":{"a":NaN}}', {"Content-Type": "application/json"}, 422, "a number that JSON cannot express"),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 422, "JSON"),
    ],
)
async def test_a_body_that_cannot_be_right_is_refused(
    open_http: OpenHttp, body: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    async with open_http() as http:
        answer = await http.put("k", body, headers=headers)
        assert (await http.keys())["entries"] == []

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([("Content-Type", "a/b"), ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")], "'identity, gzip'"),
        ([("Content-Type", "text/plain"), ("Content-Type", "text/html")], "'text/plain, text/html'"),
    ],
)
async def test_no_line_of_a_header_that_comes_twice_is_overlooked(
    open_http: OpenHttp, headers: list[tuple[str, str]], says: str
) -> None:
    async with open_http() as http:
        query = {"scope": "artifacts", "key": "k"}
        answer = await http.post(f"{CACHE}/value", params=query, content=b"v", headers=headers)
        assert (await http.keys())["entries"] == []

    assert answer.status_code == 415
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    "query",
    [
        {"ttl_hours": "0"},
        {"ttl_hours": "inf"},
        {"ttl_hours": "nan"},
        {"metadata": "x"},
        {"metadata": '{"a":1}'},
        {"metadata": "[]"},
        {"metadata": '{"a":"\\ud800"}'},
        {"metadata": json.dumps({"a": "x" * 5_000})},
        {"raw": "perhaps"},
    ],
    ids=str,
)
async def test_parameters_of_a_raw_body_are_checked(open_http: OpenHttp, query: dict[str, str]) -> None:
    async with open_http() as http:
        answer = await http.put("k", **query)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_argument")


async def test_parameters_of_a_raw_body_beside_json_are_refused(open_http: OpenHttp) -> None:
    async with open_http() as http:
        answer = await http.put("k", b'{"value":"v"}', headers={"Content-Type": "application/json"}, ttl_hours=1)

    assert answer.status_code == 422
    assert "raw=true" in answer.json()["todo"]


async def test_what_is_too_large_is_refused_and_leaves_what_was_there(open_http: OpenHttp) -> None:
    small = Settings(
        durability="fast",
        max_value_mb=0.001,
        scopes=ScopesSettings(artifacts=ScopeSettings(quota_mb=0.0015, ttl_hours=1)),
    )
    async with open_http(settings=small) as http:
        await http.put("k", b"old")
        refused = await http.put("k", b"x" * 1_001)

        async def chunks():
            for _ in range(1_001):
                yield b"x"

        streamed = await http.post(
            f"{CACHE}/value",
            params={"scope": "artifacts", "key": "k"},
            content=chunks(),
            headers={"Content-Type": "text/plain"},
        )
        full = await http.put("more", b"x" * 1_000)
        over = await http.put("over", b"x" * 999)
        assert (await http.value("k")).content == b"old"

    assert [(each.status_code, each.json()["code"]) for each in (refused, streamed)] == [(413, "too_large")] * 2
    assert full.status_code == 201
    assert (over.status_code, over.json()["code"]) == (507, "quota_exceeded")


async def test_a_json_body_over_4_mib_is_refused_and_told_to_be_raw(open_http: OpenHttp) -> None:
    async with open_http() as http:
        body = json.dumps({"value": "x" * (4 << 20)}).encode()
        answer = await http.put("k", body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "raw" in answer.json()["todo"]


@pytest.mark.parametrize("scope", ["system", "instructions"])
async def test_what_mirrors_files_is_not_written(open_http: OpenHttp, scope: str) -> None:
    address = {"scope": scope, "key": "k"}
    async with open_http() as http:
        answers = [
            await http.put("k", scope=scope),
            await http.delete(f"{CACHE}/value", params=address),
            await http.delete(f"{CACHE}/clear-scope", params={"scope": scope, "confirm": "true"}),
        ]

    assert [(each.status_code, each.json()["code"]) for each in answers] == [(409, "read_only")] * 3


async def test_a_damaged_value_is_never_served(open_http: OpenHttp, workspace) -> None:
    async with open_http() as http:
        await http.put("k", b"value")
        (file,) = (workspace / ".iris" / "kv-cache" / "artifacts").glob("*__*")
        file.write_bytes(b"VALUE")
        answer = await http.value("k")

    assert (answer.status_code, answer.json()["code"]) == (500, "corrupt")


async def test_each_operation_needs_its_right(open_http: OpenHttp) -> None:
    address = {"scope": "artifacts", "key": "k"}
    operations = {
        ("GET", "stats"): ({}, "kv:read"),
        ("GET", "keys"): ({"scope": "task"}, "kv:read"),
        ("GET", "value"): (address, "kv:read"),
        ("HEAD", "value"): (address, "kv:read"),
        ("GET", "instructions"): ({}, "kv:read"),
        ("GET", "rollout"): ({}, "kv:read"),
        ("POST", "value"): (address, "kv:write"),
        ("DELETE", "value"): (address, "kv:write"),
        ("POST", "prune"): ({}, "kv:admin"),
        ("POST", "seed-instructions"): ({}, "kv:admin"),
        ("DELETE", "clear-scope"): ({"scope": "task", "confirm": "true"}, "kv:admin"),
    }
    for held in RIGHTS:
        async with open_http(rights=[held]) as http:
            for (method, name), (query, needed) in operations.items():
                headers = {"Content-Type": "text/plain"}
                answer = await http.request(method, f"{CACHE}/{name}", params=query, headers=headers)
                assert (answer.status_code == 403) is (held not in (needed, "kv:admin")), (held, method, name)


async def test_json_that_is_no_envelope_is_told_how_to_be_stored_as_it_is(open_http: OpenHttp) -> None:
    async with open_http() as http:
        refused = await http.put("cfg", b'{"a": 1}', headers={"Content-Type": "application/json"})
        stored = await http.put("cfg", b'{"a": 1}', headers={"Content-Type": "application/json"}, raw="true")

    assert (refused.status_code, stored.status_code) == (422, 201)
    assert refused.json()["todo"].endswith("add raw=true to the query")


async def test_large_json_is_stored_as_it_is_or_not_at_all(open_http: OpenHttp) -> None:
    value = json.dumps([{"n": n, "text": "é" * 20} for n in range(20_000)], ensure_ascii=False).encode()
    kind = {"Content-Type": "application/json"}
    async with open_http() as http:
        assert (await http.put("k", value, headers=kind, raw="true")).status_code == 201
        refused = await http.put("k", value[:-1], headers=kind, raw="true")
        assert (await http.value("k")).content == value

    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_argument")
