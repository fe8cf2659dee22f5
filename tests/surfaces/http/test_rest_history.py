"""REST on kept versions: history, what was deleted, and restoring."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import Clock
from tests.surfaces.http.conftest import CACHE, Http, OpenHttp

from iris_kv.model import digest_of
from iris_kv.settings import HistorySettings, ScopeSettings, ScopesSettings, Settings

HOUR_MS = 3_600_000
AT = "2026-01-01T00:00:00.000Z"
OFF = Settings(durability="fast", history=HistorySettings(versions=0, deleted_hours=0))


async def restore(http: Http, key: str, headers: dict[str, str] | None = None, **query: Any):
    return await http.post(f"{CACHE}/restore", params={"scope": "artifacts", "key": key, **query}, headers=headers)


async def history(http: Http, key: str) -> dict[str, Any]:
    answer = await http.get(f"{CACHE}/history", params={"scope": "artifacts", "key": key})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def delete(http: Http, key: str) -> dict[str, Any]:
    return (await http.delete(f"{CACHE}/value", params={"scope": "artifacts", "key": key})).json()


async def test_a_history_tells_what_an_entry_was(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        first = (await http.put("k", b"one")).json()
        second = (await http.put("k", b"two!")).json()

        assert await history(http, "k") == {
            "live": second,
            "kept": [{**first, "replaced_at": AT, "replaced_by": "update", "kept_until": None}],
        }


async def test_a_write_a_deletion_and_a_clear_are_undone(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        first = (await http.put("k", b"one", metadata='{"n":"1"}')).json()
        clock.move(5)
        await http.put("k", b"two!")
        restored = await restore(http, "k", version=1)
        assert restored.status_code == 200
        assert restored.headers["etag"] == f'"{digest_of(b"one")}"'
        info = restored.json()
        assert (info["version"], info["metadata"], info["created_at"]) == (3, {"n": "1"}, first["created_at"])
        assert (await http.value("k")).content == b"one"

        deleted = await delete(http, "k")
        assert deleted == {**info, "undo": "POST restore, for 24 hours"}
        assert (await restore(http, "k", {"If-None-Match": "*"})).json()["version"] == 4

        await http.put("other", b"x")
        query = {"scope": "artifacts", "confirm": "true"}
        cleared = (await http.delete(f"{CACHE}/clear-scope", params=query)).json()
        assert cleared == {"entries": 2, "bytes": 4, "undo": "POST restore, for 24 hours"}
        page = (await http.get(f"{CACHE}/deleted", params={"scope": "artifacts", "limit": 1})).json()
        rest = await http.get(f"{CACHE}/deleted", params={"scope": "artifacts", "cursor": page["next_cursor"]})
        listed = [*page["entries"], *rest.json()["entries"]]
        assert [(each["key"], each["replaced_by"]) for each in listed] == [("k", "clear"), ("other", "clear")]
        for key in ("k", "other"):
            assert (await restore(http, key)).status_code == 200
        assert ((await http.value("k")).content, (await http.value("other")).content) == (b"one", b"x")

        await delete(http, "k")
        clock.move(24 * HOUR_MS)
        assert (await restore(http, "k")).status_code == 404
        gone = await http.get(f"{CACHE}/history", params={"scope": "artifacts", "key": "k"})
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


async def test_an_entry_that_is_written_again_after_its_deletion_is_created(open_http: OpenHttp, clock: Clock) -> None:
    async with open_http(clock=clock) as http:
        statuses = [(await http.put("k", b"one")).status_code, (await http.put("k", b"two")).status_code]
        await delete(http, "k")
        again = await http.put("k", b"three")
        statuses += [again.status_code, (await http.put("k", b"four")).status_code]
        clock.move(1)
        statuses += [(await http.put("k", b"five")).status_code]

    assert statuses == [201, 200, 201, 200, 200]
    assert "location" in again.headers


@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({"If-Match": f'"{digest_of(b"one")}"'}, {}, 412, "conflict"),
        ({"If-None-Match": "*"}, {}, 412, "conflict"),
        ({"If-Match": "x"}, {}, 422, "invalid_argument"),
        ({}, {"version": 9}, 404, "not_found"),
        ({}, {"version": 0}, 422, "invalid_argument"),
        ({}, {"version": "x"}, 422, "invalid_argument"),
        ({}, {"key": "none"}, 404, "not_found"),
        ({}, {"digest": "x"}, 422, "invalid_argument"),
        ({}, {"scope": "system"}, 409, "read_only"),
    ],
    ids=str,
)
async def test_a_restore_that_cannot_be_changes_nothing(
    open_http: OpenHttp, headers: dict[str, str], query: dict[str, Any], status: int, code: str
) -> None:
    async with open_http() as http:
        await http.put("k", b"one")
        await http.put("k", b"two!")
        refused = await restore(http, headers=headers, **{"key": "k", **query})

        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert (await http.value("k")).content == b"two!"
        matched = await restore(http, "k", {"If-Match": f'"{digest_of(b"two!")}"'})
        assert matched.status_code == 200


async def test_a_version_that_no_longer_fits_is_refused(open_http: OpenHttp, clock: Clock) -> None:
    small = Settings(
        durability="fast",
        scopes=ScopesSettings(artifacts=ScopeSettings(quota_mb=0.001, ttl_hours=1)),
        max_value_mb=0.0005,
    )
    async with open_http(clock=clock) as http:
        await http.put("k", b"x" * 600)
        await http.put("k", b"two!")
    async with open_http(clock=clock, settings=small) as http:
        refused = await restore(http, "k")

    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")


async def test_each_operation_needs_its_right(open_http: OpenHttp) -> None:
    async with open_http(rights=["kv:read"]) as http:
        assert (await restore(http, "k")).status_code == 403
        assert (await http.get(f"{CACHE}/deleted", params={"scope": "task"})).json() == {
            "entries": [],
            "next_cursor": None,
        }
    async with open_http(rights=["kv:write"]) as http:
        for path in ("history", "deleted"):
            refused = await http.get(f"{CACHE}/{path}", params={"scope": "task", "key": "k"})
            assert refused.status_code == 403
        assert (await restore(http, "k")).status_code == 404


async def test_where_nothing_is_kept_no_answer_promises_it(open_http: OpenHttp) -> None:
    async with open_http(settings=OFF) as http:
        await http.put("k", b"one")
        assert (await delete(http, "k"))["undo"] is None
        await http.put("k", b"one")
        query = {"scope": "artifacts", "confirm": "true"}
        assert (await http.delete(f"{CACHE}/clear-scope", params=query)).json()["undo"] is None
        assert (await restore(http, "k")).status_code == 404
