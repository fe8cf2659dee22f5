"""What stands in every client's context does not change byte by byte, so that caches of prompts hold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iris_kv.policy import Principal

if TYPE_CHECKING:
    from tests.surfaces.conftest import Era, Open, Serve, Session

USER = Principal(author="user", face="cli")
TAGS = ["document_creation", "presentation", "research", "web_development"]


async def standing(session: Session) -> dict[str, str]:
    """Return what a client may put into every request, as it is on the wire."""
    client = session.client
    listed = {
        "tools": await client.list_tools(),
        "prompts": await client.list_prompts(),
        "system": await client.get_prompt("system"),
        "resources": await client.list_resources(),
        "templates": await client.list_resource_templates(),
    }
    found = {name: result.model_dump_json(by_alias=True) for name, result in listed.items()}
    return {**found, "instructions": client.instructions or "", "info": repr(client.server_info)}


async def test_nothing_standing_depends_on_process_folder_time_zone_or_puts(
    era: Era, serve: Serve, tmp_path: Path
) -> None:
    async def seen(name: str, zone: str, *, puts: int = 0) -> dict[str, str]:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        async with serve(era, "--profile", "full", root=root, env={"TZ": zone, "PYTHONHASHSEED": str(puts)}) as session:
            await session.call("put_artifact", key="report/é", value="text")
            for n in range(puts):
                await session.call("cache_put", scope="task", key=f"task {n}", value="state")
                await session.call("put_artifact", key="report/é", value=f"text {n}")
            return await standing(session)

    first = await seen("one", "UTC")
    moved, restarted = await asyncio.gather(
        seen("other folder", "Pacific/Kiritimati", puts=50), seen("one", "America/Caracas", puts=3)
    )

    assert moved == first
    assert restarted == first


async def test_the_list_of_resources_names_keys_of_project_and_artifacts_only(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        for scope in ("project", "task", "artifacts"):
            await session.workspace.put(USER, scope, f"in {scope}", b"x")
        await session.call("cache_seed")
        listed = [each.model_dump(exclude_none=True) for each in (await session.client.list_resources()).resources]

    assert [each["name"] for each in listed] == [
        *TAGS,
        *("prompt_compact", "prompt_full", "stats", "in project", "in artifacts"),
    ]
    assert listed[-1] == {
        "uri": "iris-kv://cache/artifacts/in%20artifacts",
        "name": "in artifacts",
        "mime_type": "text/plain",
    }


@pytest.mark.parametrize("name", ["tools", "prompts"])
async def test_two_clients_of_one_library_see_the_same_whatever_the_era(open_server: Open, name: str) -> None:
    async with open_server("legacy") as one, open_server("auto") as other:
        lists = [await getattr(session.client, f"list_{name}")() for session in (one, other)]

    first, second = ([each.model_dump() for each in getattr(found, name)] for found in lists)
    assert first == second
