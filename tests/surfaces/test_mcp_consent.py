"""Clearing a scope asks the user, in both eras, and needs `confirm` where the client cannot ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp.types import INTERNAL_ERROR, ElicitResult, ErrorData

from iris_kv.surfaces import consent

if TYPE_CHECKING:
    from tests.surfaces.conftest import Era, LocalSession, Open

QUESTION = "Delete every entry of the scope 'task' of this workspace's cache? Each can be restored for 24 hours."
UNDO = (
    "; for 24 hours cache_history (profile full) or `iris-kv history` lists them, and cache_restore or"
    " `iris-kv restore-entry` brings each back"
)


def answering(asked: list[str], answer: ElicitResult | ErrorData) -> Callable[..., Any]:
    """Return what a client does with a question: note it, and give this answer."""

    async def answer_it(_: object, question: Any) -> ElicitResult | ErrorData:
        asked.append(question.message)
        assert question.requested_schema["required"] == ["delete"]
        return answer

    return answer_it


async def keys(session: LocalSession) -> list[str]:
    return [entry["key"] for entry in (await session.data("cache_list", scope="task"))["entries"]]


async def test_a_user_who_agrees_clears_the_scope(era: Era, open_server: Open) -> None:
    asked: list[str] = []
    agrees = answering(asked, ElicitResult(action="accept", content={"delete": True}))
    async with open_server(era, elicitation_callback=agrees) as session:
        await session.call("cache_put", scope="task", key="k", value="value")
        await session.call("cache_put", scope="artifacts", key="k", value="value")
        answer = await session.call("cache_clear", scope="task")
        left = await keys(session)
        other = await session.data("cache_list", scope="artifacts")

    assert answer == "cleared task: 1 entries (5 bytes)" + UNDO
    assert asked == [QUESTION]
    assert (left, len(other["entries"])) == ([], 1)


@pytest.mark.parametrize("confirm", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"delete": False}),
        ElicitResult(action="accept", content={}),
        ElicitResult(action="accept", content={"delete": "yes"}),
    ],
    ids=lambda answer: f"{answer.action} {answer.content}",
)
async def test_a_user_who_does_not_agree_keeps_everything_whatever_the_model_confirmed(
    era: Era, open_server: Open, answer: ElicitResult, confirm: bool
) -> None:
    asked: list[str] = []
    async with open_server(era, elicitation_callback=answering(asked, answer)) as session:
        await session.call("cache_put", scope="task", key="k", value="value")
        refusal = await session.refusal("cache_clear", scope="task", confirm=confirm)
        left = await keys(session)

    assert refusal == "forbidden: the user did not agree to clear task; nothing was deleted; go on without clearing it"
    assert asked == [QUESTION]
    assert left == ["k"]


async def test_a_user_who_does_not_answer_keeps_everything(open_server: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "ANSWER_S", 0.01)

    async def never(_: object, __: object) -> ElicitResult:
        await anyio.sleep_forever()
        raise AssertionError

    async with open_server("legacy", elicitation_callback=never) as session:
        await session.call("cache_put", scope="task", key="k", value="value")
        with anyio.fail_after(20):
            refusal = await session.refusal("cache_clear", scope="task")
        left = await keys(session)

    assert refusal.startswith("forbidden: the user did not answer within 0.01 s; nothing was deleted")
    assert left == ["k"]


async def test_a_client_that_cannot_ask_must_confirm(era: Era, open_server: Open) -> None:
    async with open_server(era) as session:
        await session.call("cache_put", scope="task", key="k", value="value")
        refusals = [
            await session.refusal("cache_clear", scope="task"),
            await session.refusal("cache_clear", scope="task", confirm=False),
        ]
        left = await keys(session)
        answer = await session.call("cache_clear", scope="task", confirm=True)

    assert (
        refusals
        == [
            "invalid_argument: clearing task deletes all its entries and was not confirmed;"
            " this client cannot ask the user, so confirm must be true;"
            " ask the user, and if they agree call cache_clear again with confirm=true"
        ]
        * 2
    )
    assert left == ["k"]
    assert answer == "cleared task: 1 entries (5 bytes)" + UNDO


async def test_nobody_is_asked_about_what_cannot_be_cleared(era: Era, open_server: Open) -> None:
    asked: list[str] = []
    agrees = answering(asked, ElicitResult(action="accept", content={"delete": True}))
    async with open_server(era, elicitation_callback=agrees) as session:
        refusal = await session.refusal("cache_clear", scope="system")

    assert refusal.startswith("read_only: the scope 'system' cannot be changed (clear)")
    assert asked == []


async def test_a_client_that_fails_to_ask_keeps_everything(open_server: Open) -> None:
    asked: list[str] = []
    fails = answering(asked, ErrorData(code=INTERNAL_ERROR, message="no window"))
    async with open_server("legacy", elicitation_callback=fails) as session:
        await session.call("cache_put", scope="task", key="k", value="value")
        refusal = await session.refusal("cache_clear", scope="task")
        left = await keys(session)

    assert refusal == (
        "forbidden: the client did not ask the user (no window); nothing was deleted; ask the user in another way"
    )
    assert left == ["k"]


async def test_an_answer_about_one_scope_does_not_clear_another(open_server: Open) -> None:
    agreed = {"clear-task": ElicitResult(action="accept", content={"delete": True})}
    async with open_server(elicitation_callback=answering([], ElicitResult(action="decline"))) as session:
        await session.call("cache_put", scope="artifacts", key="k", value="value")
        answer = await session.client.session.call_tool(
            "cache_clear", {"scope": "artifacts"}, input_responses=agreed, allow_input_required=True
        )
        held = await session.data("cache_list", scope="artifacts")

    assert list(answer.input_requests) == ["clear-artifacts"]
    assert len(held["entries"]) == 1
