"""Messages as OpenAI's and Anthropic's APIs write them: what of them is text, and what they weigh.

A message is a mapping with `role` and `content`; the content is a string or a list of blocks with
`type`. Only a message of nothing but text can be summarised. Calls of tools and their results,
thinking, images, and all that is not known here stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, cast

from pydantic import BaseModel

from iris_kv.errors import InvalidArgumentError
from iris_kv.model import digest_of
from iris_kv.tokens import TokenCounter

Message: TypeAlias = Mapping[str, object]
"""One message; it is never changed, and what is kept is handed on as the same object."""

MEDIA_TOKENS: Final = 1_600
"""What an image or another file inside a message counts as; its base64 would be counted a hundred times over."""

_TEXT_TYPES: Final = ("text", "input_text", "output_text")
_TEXT_KEYS: Final = ("type", "text", "cache_control")
_WHOLE_FIELDS: Final = (
    "annotations",
    "audio",
    "function_call",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "refusal",
    "tool_call_id",
    "tool_calls",
)
_MEDIA_KEYS: Final = ("data", "file_data")
_MEDIA_CHARS: Final = 1_000
_MEDIA: Final = "\N{OBJECT REPLACEMENT CHARACTER}iris-kv media\N{OBJECT REPLACEMENT CHARACTER}"


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is no message.

    Raises:
        InvalidArgumentError: One of them is no mapping, such as an object of an SDK.
    """
    for number, message in enumerate(cast("Sequence[object]", messages)):
        if not isinstance(message, Mapping):
            raise InvalidArgumentError(
                f"message {number} is a {type(message).__name__}",
                "a message is a dict with role and content",
                "pass an SDK's object as message.model_dump(exclude_none=True)",
            )


def role_of(message: Message) -> str:
    """Return who speaks; empty where the message does not say."""
    role = message.get("role")
    return role if isinstance(role, str) else ""


def text_of(message: Message) -> str | None:
    """Return the text of a message of nothing but text; None: it is empty, or there is more in it."""
    if message.get("type", "message") != "message" or any(message.get(field) for field in _WHOLE_FIELDS):
        return None
    content = message.get("content")
    texts = [content] if isinstance(content, str) else _block_texts(content)
    return "\n".join(texts) if any(text.strip() for text in texts) else None


def _block_texts(content: object) -> list[str]:
    """Return the texts of a list of text blocks; none if there is any other block."""
    blocks = cast("list[object]", content) if isinstance(content, list) else []
    texts = [_block_text(block) for block in blocks]
    return [] if None in texts else cast("list[str]", texts)


def _block_text(block: object) -> str | None:
    if not isinstance(block, Mapping):
        return None
    fields = cast("Mapping[str, object]", block)
    text = fields.get("text")
    if fields.get("type") not in _TEXT_TYPES or any(fields[name] for name in fields if name not in _TEXT_KEYS):
        return None
    return text if isinstance(text, str) else None


def with_text(message: Message, text: str) -> Message:
    """Return a copy of a message of nothing but text with another text, in the same shape."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    blocks = cast("list[Mapping[str, object]]", content)
    # A mark of a prompt cache holds for all that stands above it, so the last one stands for all.
    marks = [block["cache_control"] for block in blocks if block.get("cache_control")]
    block = {"type": blocks[0]["type"], "text": text, **({"cache_control": marks[-1]} if marks else {})}
    return {**message, "content": [block]}


def message_digest(message: Message) -> str:
    """Return the digest of the role and all content of a message of nothing but text.

    It is that of canonical JSON: sorted names, no spaces, ASCII. The marks of a prompt cache are
    no content: programs move them at every turn.
    """
    content = message["content"]
    if not isinstance(content, str):
        blocks = cast("list[Mapping[str, object]]", content)
        content = [{"type": block["type"], "text": block["text"]} for block in blocks]
    canonical = {"role": role_of(message), "content": content}
    return digest_of(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode())


def message_tokens(message: Message, counter: TokenCounter) -> int:
    """Return about how many tokens a message takes: those of its JSON, calls of tools and all fields included."""
    written = json.dumps(_countable(message), ensure_ascii=False).encode("utf-8", "replace").decode()
    media = written.count(_MEDIA)
    return counter.count(written.replace(_MEDIA, "")) + media * MEDIA_TOKENS


def _countable(value: object, name: str = "") -> object:
    """Return a value as JSON can write it, with a mark in the place of each file in base64."""
    if isinstance(value, str):
        is_media = len(value) > _MEDIA_CHARS and (name in _MEDIA_KEYS or value.startswith("data:"))
        return _MEDIA if is_media else value
    if isinstance(value, BaseModel):
        return _countable(value.model_dump(), name)
    if isinstance(value, Mapping):
        fields = cast("Mapping[object, object]", value)
        return {str(key): _countable(each, str(key)) for key, each in fields.items()}
    if isinstance(value, list | tuple):
        return [_countable(each, name) for each in cast("Sequence[object]", value)]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
