"""Backup and restore: consistent while servers write, all or nothing, and nothing but a whole archive is taken."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import anyio
import pytest

from iris_kv.errors import InvalidArgumentError, NotFoundError, UnavailableError

CACHE = Path(".iris/kv-cache")
HOUR_MS = 3_600_000


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive, "r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def write(archive: Path, content: dict[str, bytes], extra: tarfile.TarInfo | None = None) -> None:
    with tarfile.open(archive, "w") as tar:
        for name, value in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
        if extra is not None:
            tar.addfile(extra)


def sealed(content: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    manifest = json.dumps(json.loads(content["manifest.json"]) | changes).encode()
    return content | {"manifest.json": manifest, "manifest.sha256": hashlib.sha256(manifest).hexdigest().encode()}


def leftovers(workspace: Path) -> list[Path]:
    return list((workspace / ".iris").rglob(".tmp-*"))


@pytest.fixture
def archive(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("backups") / "store.tar"


@pytest.fixture
def backed_up(workspace, open_file_store, put, archive):
    """Return a function that fills a store, backs it up and goes on writing."""

    async def back_up() -> Path:
        async with open_file_store() as store:
            await put(store, "k", b"the value of k", metadata={"ü": "1"}, content_type="text/markdown")
            await put(store, "../a b", b"x" * 300_000, scope="project")
            await put(store, "empty", b"", scope="artifacts", ttl_ms=HOUR_MS, renew=True)
            done = await store.back_up(archive)
            assert (done.entries, done.bytes, done.damaged) == (3, 300_014, ())
            await put(store, "k", b"newer")
            await put(store, "later", b"later")
            await store.delete("project", "../a b")
        return archive

    return back_up


async def test_a_restore_gives_back_what_was_backed_up(backed_up, open_file_store, workspace, put):
    archive = await backed_up()
    async with open_file_store() as store, open_file_store() as other:
        workspace_id = await store.workspace_id()
        position = (await other.changes(None)).next
        assert (await other.get("task", "k")).value == b"newer"

        assert (await store.restore(archive)).entries == 3

        for each in (store, other):
            entry = await each.get("task", "k")
            assert (entry.value, entry.info.metadata) == (b"the value of k", {"ü": "1"})
            assert entry.info.content_type == "text/markdown"
            assert (await each.get("project", "../a b")).value == b"x" * 300_000
            with pytest.raises(NotFoundError):
                await each.get("task", "later")
        assert (await other.changes(position)).reset
        assert await store.workspace_id() == workspace_id
        await put(other, "k", b"after")
        assert (await store.get("task", "k")).value == b"after"
        verified = await store.verify()
        assert (verified.entries, verified.damaged, verified.usage_matches) == (3, (), True)
        assert (await store.repair()).problem is None
    assert leftovers(workspace) == []


async def test_an_index_lost_after_a_restore_is_made_anew_as_it_was(backed_up, open_file_store, workspace):
    archive = await backed_up()
    async with open_file_store() as store:
        await store.restore(archive)
    (workspace / CACHE / ".store/index.db").unlink()
    for scope in ("task", "project", "artifacts"):
        (workspace / CACHE / scope / ".index.json").unlink()
    async with open_file_store() as store:
        assert [info.key for info in (await store.list("task")).entries] == ["k"]
        assert (await store.get("task", "k")).value == b"the value of k"
        assert (await store.get("project", "../a b")).value == b"x" * 300_000


async def test_a_restore_into_another_workspace_counts_as_reading(backed_up, open_file_store, tmp_path_factory, clock):
    archive = await backed_up()
    clock.move(5 * HOUR_MS)
    async with open_file_store(tmp_path_factory.mktemp("new")) as store:
        await store.restore(archive)
        assert (await store.get("artifacts", "empty")).info.expires_at == clock.now_ms() + HOUR_MS
        assert (await store.get("task", "k")).value == b"the value of k"


async def test_a_backup_while_others_write_is_of_one_moment(open_file_store, workspace, put, archive, tmp_path_factory):
    async def write_pairs() -> None:
        for n in range(60):
            await put(writer, "a", b"%d" % n)
            await put(writer, "b", b"%d" % n)

    async with open_file_store() as store, open_file_store() as writer:
        for n in range(50):
            await put(store, f"other {n}", b"x" * 50_000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_pairs)
            await store.back_up(archive)
    async with open_file_store(tmp_path_factory.mktemp("new")) as store:
        await store.restore(archive)
        found = {info.key for info in (await store.list("task")).entries}
        assert len(found - {"a", "b"}) == 50
        if "a" in found:
            a = int((await store.get("task", "a")).value)
            b = int((await store.get("task", "b")).value) if "b" in found else -1
            assert a - b in (0, 1)


async def test_a_damaged_value_is_left_out_and_named(open_file_store, workspace, put, archive):
    async with open_file_store() as store:
        await put(store, "k", b"value")
        await put(store, "l", b"value of l")
        (path,) = (workspace / CACHE / "task").glob("k__*")
        path.write_bytes(b"Value")
        done = await store.back_up(archive)
        assert (done.entries, [each.key for each in done.damaged]) == (1, ["k"])
        assert (await store.restore(archive)).entries == 1


async def test_a_backup_that_cannot_be_written_leaves_the_older_one(open_file_store, put, archive, workspace):
    archive.mkdir()
    async with open_file_store() as store:
        await put(store, "k")
        with pytest.raises(UnavailableError, match=r"the archive 'store\.tar' cannot be written"):
            await store.back_up(archive)
        with pytest.raises(UnavailableError):
            await store.back_up(archive / "nowhere/store.tar")
    assert list(archive.parent.iterdir()) == [archive]


def a_link(name: str) -> tarfile.TarInfo:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return link


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../outside", "task/../../outside", "task/notes.txt", "elsewhere/a__01234567-1.txt"]
)
async def test_an_archive_with_another_member_is_refused_and_changes_nothing(
    backed_up, open_file_store, workspace, name
):
    archive = await backed_up()
    write(archive, members(archive) | {name: b"planted"})
    await refuse(open_file_store, archive, "which no backup has", workspace)


@pytest.mark.parametrize("name", ["task/a__01234567-1.txt", "manifest.json"])
async def test_an_archive_with_a_link_is_refused_and_changes_nothing(backed_up, open_file_store, workspace, name):
    archive = await backed_up()
    write(archive, members(archive), a_link(name))
    await refuse(open_file_store, archive, "which no backup has", workspace)


async def test_an_archive_of_a_changed_value_is_refused_and_changes_nothing(backed_up, open_file_store, workspace):
    archive = await backed_up()
    content = members(archive)
    (name,) = [name for name in content if name.startswith("task/k__")]
    write(archive, content | {name: b"The value of k"})
    await refuse(open_file_store, archive, "the value of 'k' in task does not match", workspace)
    del content[name]
    write(archive, content)
    await refuse(open_file_store, archive, "it has no value of 'k' in task", workspace)


async def test_an_archive_with_another_manifest_is_refused_and_changes_nothing(backed_up, open_file_store, workspace):
    archive = await backed_up()
    content = members(archive)
    changed = content | {"manifest.json": content["manifest.json"].replace(b"text/markdown", b"text/html")}
    write(archive, changed)
    await refuse(open_file_store, archive, "its manifest does not match its digest", workspace)
    write(archive, sealed(content, format=2))
    await refuse(open_file_store, archive, "its format is 2", workspace)
    entries = json.loads(content["manifest.json"])["entries"]
    for changes in ({"key": "\0"}, {"file": "../../x"}, {"scope": "nowhere"}, {"key": "j"}, {"size": "1"}, {"ttl": -1}):
        write(archive, sealed(content, entries=[entries[0] | changes]))
        await refuse(open_file_store, archive, "an entry that no store could have written", workspace)
    write(archive, sealed(content, entries=[entries[0], entries[0]]))
    await refuse(open_file_store, archive, "a key twice", workspace)
    write(archive, sealed(content, entries=7))
    await refuse(open_file_store, archive, "is not one of iris-kv", workspace)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.95])
async def test_an_archive_that_was_cut_off_is_refused_and_changes_nothing(backed_up, open_file_store, workspace, share):
    archive = await backed_up()
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    await refuse(open_file_store, archive, "the archive cannot be restored", workspace)


async def refuse(open_file_store, archive: Path, problem: str, workspace: Path) -> None:
    async with open_file_store() as store:
        with pytest.raises(InvalidArgumentError, match=problem):
            await store.restore(archive)
        assert (await store.get("task", "k")).value == b"newer"
        assert (await store.get("task", "later")).value == b"later"
        assert (await store.verify()).entries == 3
    assert leftovers(workspace) == []
    assert not (workspace.parent / "outside").exists()
