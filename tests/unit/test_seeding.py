"""Seeding mirrors the library into a store that other processes with other libraries seed too."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from iris_kv.instructions import InstructionLibrary, InstructionSource
from iris_kv.model import SCOPES, Limits, Provenance, Scope, digest_of
from iris_kv.prompts import PromptSelector
from iris_kv.rollout import LiveRollout
from iris_kv.seeding import SeedReport, degradation, seed
from iris_kv.settings import Settings
from iris_kv.store.memory import MemoryStore

LIMITS: dict[Scope, Limits] = {
    scope: Limits(quota_bytes=10**6, max_value_bytes=10**6, ttl_ms=None, renew=False) for scope in SCOPES
}
PROMPTS = ("system/prompt/compact", "system/prompt/full")


class Process:
    """A process with its own sources, given as folders from the first to the one that wins."""

    def __init__(self, store: MemoryStore, folders: Sequence[Path], prompt: str = "") -> None:
        sources = [InstructionSource(folder=each, origin="folder", label=each.name) for each in folders]
        self.store = store
        self.labels = [source.label for source in sources]
        self.library = InstructionLibrary(sources)
        source = folders[0].parent / "system.md"
        self.prompts = PromptSelector(source, self.library, LiveRollout(Settings(), []), label=prompt)

    async def seed(self, *, force: bool = False) -> SeedReport:
        self.library.refresh()
        self.prompts.refresh()
        return await seed(self.store, self.library, self.prompts, LIMITS, self.labels, force=force)


Start = Callable[..., Process]


@pytest.fixture
def open_store(clock) -> Callable[[], AbstractAsyncContextManager[MemoryStore]]:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[MemoryStore]:
        async with aclosing(MemoryStore(clock)) as store:
            yield store

    return opened


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "system.md").write_text("# Prompt\n\n<!-- iris:instructions -->\n")

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    return folder


def write(folder: Path, name: str, body: str = "Do it.") -> bytes:
    raw = f'---\nname: {name}\ndescription: Does it.\nmetadata:\n  version: "2.0"\n---\n{body}\n'
    (folder / f"{name}.md").write_text(raw)
    return raw.encode()


async def held(store: MemoryStore) -> dict[str, bytes]:
    page = await store.list("instructions", limit=100)
    return {info.key: (await store.get("instructions", info.key)).value for info in page.entries}


async def test_seeding_writes_every_instruction_and_both_prompts_once(open_store, folders) -> None:
    a = write(folders("one"), "a")
    async with open_store() as store:
        process = Process(store, [folders("one")])
        first = await process.seed()
        second = await process.seed()
        entry = await store.get("instructions", "a")
        prompt = await store.get("system", "prompt/compact")

    assert first == SeedReport(written=("instructions/a", *PROMPTS), unchanged=(), kept=(), removed=())
    assert second == SeedReport(written=(), unchanged=("instructions/a", *PROMPTS), kept=(), removed=())
    assert entry.value == a
    assert entry.info.content_type == "text/markdown"
    assert entry.info.metadata == {"source": "one", "version": "2.0"}
    assert entry.info.provenance == Provenance(author="canonical", face="seeder")
    assert prompt.value.decode() == process.prompts.render("compact")


async def test_an_edited_file_replaces_its_copy_and_a_deleted_one_removes_it(open_store, folders) -> None:
    write(folders("one"), "a")
    write(folders("one"), "b")
    async with open_store() as store:
        process = Process(store, [folders("one")])
        await process.seed()
        a = write(folders("one"), "a", "Edited.")
        (folders("one") / "b.md").unlink()
        report = await process.seed()
        copies = await held(store)

    assert report == SeedReport(
        written=("instructions/a", *PROMPTS), unchanged=(), kept=(), removed=("instructions/b",)
    )
    assert copies == {"a": a}


async def test_the_last_file_of_a_source_is_removed_too(open_store, folders) -> None:
    write(folders("one"), "a")
    async with open_store() as store:
        process = Process(store, [folders("one"), folders("overlay")])
        await process.seed()
        write(folders("overlay"), "b")
        added = await process.seed()
        (folders("overlay") / "b.md").unlink()
        removed = await process.seed()
        copies = await held(store)

    assert added.written == ("instructions/b", *PROMPTS)
    assert removed == SeedReport(written=PROMPTS, unchanged=("instructions/a",), kept=(), removed=("instructions/b",))
    assert list(copies) == ["a"]


async def test_what_an_overlay_overrode_comes_back_when_the_overlay_goes(open_store, folders) -> None:
    shipped = write(folders("shipped"), "a", "Shipped.")
    async with open_store() as store:
        process = Process(store, [folders("shipped"), folders("overlay")])
        mine = write(folders("overlay"), "a", "Mine.")
        await process.seed()
        overridden = await held(store)
        (folders("overlay") / "a.md").unlink()
        report = await process.seed()
        restored = await held(store)

    assert overridden == {"a": mine}
    assert report.written == ("instructions/a", "system/prompt/full")
    assert restored == {"a": shipped}


async def test_another_source_s_copy_is_neither_overwritten_nor_removed(open_store, folders) -> None:
    theirs = {name: write(folders("theirs"), name, "Theirs.") for name in ("a", "b")}
    mine = {name: write(folders("mine"), name, "Mine.") for name in ("a", "c")}
    async with open_store() as store:
        await Process(store, [folders("theirs")]).seed()
        process = Process(store, [folders("mine")])
        report = await process.seed()
        copies = await held(store)
        (folders("mine") / "a.md").unlink()
        (folders("mine") / "c.md").unlink()
        after = await process.seed()
        left = await held(store)
        forced = await Process(store, [folders("mine"), folders("more")]).seed(force=True)

    assert report == SeedReport(
        written=("instructions/c",), unchanged=(), kept=("instructions/a", *PROMPTS), removed=()
    )
    assert copies == theirs | {"c": mine["c"]}
    assert after.removed == ("instructions/c",)
    assert left == theirs
    assert forced.written == PROMPTS


async def test_force_overwrites_other_sources_copies(open_store, folders) -> None:
    write(folders("theirs"), "a", "Theirs.")
    mine = write(folders("mine"), "a", "Mine.")
    async with open_store() as store:
        await Process(store, [folders("theirs")]).seed()
        report = await Process(store, [folders("mine")]).seed(force=True)
        copies = await held(store)

    assert report == SeedReport(
        written=("instructions/a", "system/prompt/full"), unchanged=("system/prompt/compact",), kept=(), removed=()
    )
    assert copies == {"a": mine}


async def test_two_versions_of_one_source_do_not_take_turns(open_store, folders, tmp_path: Path) -> None:
    write(folders("shipped"), "a", "Old.")
    (tmp_path / "new").mkdir()
    new = write(tmp_path / "new", "a", "New.")
    async with open_store() as store:
        old_process = Process(store, [folders("shipped")])
        await old_process.seed()
        source = InstructionSource(folder=tmp_path / "new", origin="shipped", label="shipped")
        library = InstructionLibrary([source])
        await seed(store, library, old_process.prompts, LIMITS, ["shipped"])
        copies = await held(store)

    assert copies == {"a": new}
    assert old_process.library.get("a").body == b"Old.\n"


async def test_nothing_is_removed_while_a_file_is_broken(open_store, folders) -> None:
    write(folders("one"), "a")
    write(folders("one"), "b")
    async with open_store() as store:
        process = Process(store, [folders("one")])
        await process.seed()
        (folders("one") / "b.md").unlink()
        (folders("one") / "c.md").write_text("# No front matter\n")
        report = await process.seed()
        copies = await held(store)

    assert report.removed == ()
    assert sorted(copies) == ["a", "b"]


async def test_a_copy_that_cannot_be_read_degrades_and_one_that_differs_does_not(
    workspace: Path, open_file_store, put
) -> None:
    async with open_file_store() as store:
        await put(store, "a", b"text", scope="instructions")
        same = await degradation(store, "instructions", "a", digest_of(b"text"))
        other = await degradation(store, "instructions", "a", digest_of(b"other"))
        absent = await degradation(store, "instructions", "b", digest_of(b"text"))
        (file,) = (workspace / ".iris/kv-cache/instructions").glob("a__*")
        file.write_bytes(b"TEXT")
        damaged = await degradation(store, "instructions", "a", digest_of(b"text"))

    assert (same, other, absent, damaged) == (None, None, None, "corrupt")


async def test_a_prompt_source_that_cannot_be_read_keeps_no_instruction_from_being_seeded(
    open_store, folders, tmp_path: Path
) -> None:
    write(folders("one"), "a")
    (tmp_path / "system.md").unlink()
    async with open_store() as store:
        process = Process(store, [folders("one")])
        without = await process.seed()
        (tmp_path / "system.md").write_text("<!-- iris:instructions -->\n")
        mended = await process.seed()

    assert without.written == ("instructions/a",)
    assert mended.written == PROMPTS


async def test_prompts_of_other_sources_are_left_alone(open_store, folders, tmp_path: Path) -> None:
    write(folders("one"), "a")
    async with open_store() as store:
        await Process(store, [folders("one")]).seed()
        (tmp_path / "system.md").write_text("# Mine\n<!-- iris:instructions -->\n")
        mine = await Process(store, [folders("one")], "/mine/system.md").seed()
        (tmp_path / "system.md").write_text("# Upgraded\n<!-- iris:instructions -->\n")
        upgraded = await Process(store, [folders("one")]).seed()

    assert (mine.kept, upgraded.written) == (PROMPTS, PROMPTS)
