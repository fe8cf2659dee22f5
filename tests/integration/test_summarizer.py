"""The summarizer for OpenAI's API, against a real server on this machine."""

from __future__ import annotations

import base64
import logging
import socket
import sys
import traceback
from typing import Any

import anyio
import pytest

from iris_kv import ContextManager, OpenAISummarizer
from iris_kv.errors import ForbiddenError, InvalidArgumentError, IrisError, UnavailableError

KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)


async def summary_of(url: str, text: str = "a text", **options: Any) -> str:
    summarizer = OpenAISummarizer("m", base_url=url, api_key=KEY, **options)
    try:
        with anyio.fail_after(20):
            return await summarizer(text)
    finally:
        await summarizer.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_text_is_sent_behind_the_instructions_and_its_summary_comes_back(chat: Any, backend: str) -> None:
    async def main() -> str:
        return await summary_of(server.url, "a \ud800 text", instructions="Shorten.", max_tokens=77)

    with chat.serve(chat.said("short")) as server:
        answer = anyio.run(main, backend=backend)

    assert answer == "short"
    ((path, authorization, body),) = server.asked
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {
        "model": "m",
        "max_tokens": 77,
        "messages": [{"role": "system", "content": "Shorten."}, {"role": "user", "content": "a ? text"}],
    }


async def test_without_a_limit_none_is_sent(chat: Any) -> None:
    with chat.serve(chat.said("short")) as server:
        await summary_of(server.url, max_tokens=None)

    assert set(server.asked[0].body) == {"model", "messages"}


async def test_content_in_blocks_is_joined(chat: Any) -> None:
    with chat.serve(chat.said([{"type": "text", "text": "sho"}, {"type": "text", "text": "rt"}])) as server:
        assert await summary_of(server.url) == "short"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_tried_again(chat: Any, status: int) -> None:
    busy = chat.reply({"error": {"message": "busy"}}, status)
    with chat.serve(busy, busy, chat.said("short")) as server:
        assert await summary_of(server.url) == "short"

    assert len(server.asked) == 3


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_lasting_failure_is_said_after_the_last_attempt(chat: Any, retries: int) -> None:
    busy = chat.reply({"error": {"message": "busy", "code": "rate_limit_exceeded"}}, 429)
    with chat.serve(busy) as server, pytest.raises(UnavailableError) as raised:
        await summary_of(server.url, max_retries=retries)

    assert len(server.asked) == retries + 1
    assert str(raised.value) == (
        "unavailable: the language model's endpoint '127.0.0.1' answered 429 rate_limit_exceeded;"
        " each call is tried several times within a time; try again later; check base_url, timeout_s and max_retries"
    )


async def test_a_silent_server_is_waited_for_no_longer_than_asked(chat: Any) -> None:
    with chat.serve(chat.reply(None)) as server, pytest.raises(UnavailableError, match="gave no answer in time"):
        await summary_of(server.url, timeout_s=0.1, max_retries=1)

    assert len(server.asked) == 2


async def test_a_port_where_nobody_listens_is_named_as_such() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await summary_of(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", max_retries=0)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"{not json", "what is no chat completion"),
        (b"<html>not an API</html>", "what is no chat completion"),
        ({"choices": []}, "what is no chat completion"),
        ({"choices": [{"message": {"content": 7}}]}, "what is no chat completion"),
        ([], "what is no chat completion"),
    ],
)
async def test_an_answer_that_is_no_completion_is_a_failure(chat: Any, reply: Any, words: str) -> None:
    with chat.serve(chat.reply(reply)) as server, pytest.raises(UnavailableError, match=words):
        await summary_of(server.url)


@pytest.mark.parametrize(
    ("content", "finish_reason", "message", "words"),
    [
        (None, "stop", {"refusal": "I will not"}, "with a refusal"),
        ("part of", "content_filter", {}, "with a refusal"),
        ("part of", "length", {}, "cut at max_tokens"),
        (None, "stop", {}, "with no text"),
        ("", "stop", {}, "with no text"),
        ([], "stop", {}, "with no text"),
        (None, "tool_calls", {"tool_calls": []}, "with no text"),
    ],
)
async def test_a_refused_a_cut_and_an_empty_answer_are_failures(
    chat: Any, content: Any, finish_reason: str, message: dict[str, Any], words: str
) -> None:
    reply = chat.said(content, finish_reason, **message)
    with chat.serve(reply) as server, pytest.raises(UnavailableError, match=words):
        await summary_of(server.url)


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (401, "invalid_api_key", ForbiddenError, "refused the key: 401 invalid_api_key"),
        (403, None, ForbiddenError, "refused the key: 403;"),
        (404, "model_not_found", InvalidArgumentError, "refused the request: 404 model_not_found"),
        (400, "unsupported_parameter", InvalidArgumentError, "try max_tokens=None"),
        (400, KEY, InvalidArgumentError, "refused the request: 400;"),
        (500, "x" + KEY, UnavailableError, "answered 500;"),
        (418, f"Bad {KEY}", UnavailableError, "answered 418;"),
    ],
)
async def test_no_error_and_no_log_has_the_key(
    chat: Any, caplog: pytest.LogCaptureFixture, status: int, code: str | None, error: type[IrisError], words: str
) -> None:
    caplog.set_level(logging.DEBUG)
    said = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": code, "type": KEY}}
    with chat.serve(chat.reply(said, status)) as server, pytest.raises(error, match=words) as raised:
        await summary_of(server.url, max_retries=1)

    shown = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(vars(raised.value))
    assert KEY not in shown
    assert len(server.asked) == (2 if status == 500 else 1)


async def test_a_failure_is_logged_by_the_manager_without_the_key(chat: Any, caplog: pytest.LogCaptureFixture) -> None:
    with chat.serve(chat.reply({"error": {"message": KEY}}, 401)) as server:
        summarizer = OpenAISummarizer("m", base_url=server.url, api_key=KEY)
        context = ContextManager(summarizer=summarizer, token_threshold=0, keep_recent=0)
        compressed = await context.compress([{"role": "user", "content": "words " * 200}])
        with pytest.raises(ForbiddenError, match="refused the key") as raised:
            await context.summarize_message({"role": "user", "content": "words"})
        await summarizer.aclose()

    assert compressed.report.failures == 1
    assert "ForbiddenError" in caplog.text
    assert KEY not in caplog.text + "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("status", [200, 400])
async def test_a_name_and_password_in_the_address_are_used_and_never_shown(
    chat: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    with chat.serve(chat.said("short")._replace(status=status)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", "//ann:s%40cret@"))
        summarizer = OpenAISummarizer("m")
        try:
            answer = await summarizer("text")
        except InvalidArgumentError as error:
            answer = "".join(traceback.format_exception(error))
        await summarizer.aclose()

    assert server.asked[0].authorization == "Basic " + base64.b64encode(b"ann:s@cret").decode()
    assert answer == "short" or "refused the request" in answer
    assert "127.0.0.1" in caplog.text
    assert not any(secret in caplog.text + answer for secret in ("s%40cret", "s@cret", "YW5uOn"))


async def test_key_and_address_come_from_the_environment_too(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat.serve(chat.said("short")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        summarizer = OpenAISummarizer("m")
        assert await summarizer("text") == "short"
        await summarizer.aclose()

    assert server.asked[0].authorization == f"Bearer {KEY}"


def test_without_a_key_or_with_a_bad_address_it_says_what_to_give() -> None:
    with pytest.raises(InvalidArgumentError, match="no API key; it is api_key or OPENAI_API_KEY"):
        OpenAISummarizer("m")
    for address in ("ftp://x/v1", "127.0.0.1:8000", "http://", "http://[::1", "http://x:99999/v1"):
        with pytest.raises(InvalidArgumentError, match="base_url is no address of HTTP"):
            OpenAISummarizer("m", base_url=address, api_key=KEY)


def test_without_the_extra_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(UnavailableError, match=r"install iris-kv\[llm\]"):
        OpenAISummarizer("m", api_key=KEY)
