"""How log lines look: key=value or JSON, with the request's id; what a request says of itself comes as fields."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, Literal

from iris_kv.model import utc_text

LogFormat = Literal["text", "json"]
"""`text`: key=value, one line a record and a traceback below it. `json`: one object a line."""

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The id of the request that is being answered; None outside of one."""

_PLAIN: Final = re.compile(r"[\w.:/+@-]+")
_BREAKS: Final = str.maketrans({"\n": "\\n", "\r": "\\r", "\x1b": "\\e", "\x00": "\\0"})

Field = str | int | float
Fields = Mapping[str, Field]


def formatter(wanted: LogFormat) -> logging.Formatter:
    """Return the formatter of a format."""
    return JsonLines() if wanted == "json" else KeyValues()


class KeyValues(logging.Formatter):
    """`time= level= logger=`, the fields, and `msg=`, which goes to the line's end."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without a traceback."""
        head = f"time={_time(record)} level={record.levelname} logger={record.name}"
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        # A line break that came with a request would look like a record of its own.
        return f"{head}{fields} msg={record.message.translate(_BREAKS)}"


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Field] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            **_fields(record),
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return utc_text(int(record.created * 1000))


def _fields(record: logging.LogRecord) -> dict[str, Field]:
    found: dict[str, Field] = {}
    request_id = REQUEST_ID.get()
    if request_id is not None:
        found["request_id"] = request_id
    found.update(getattr(record, "fields", {}))
    return found


def _shown(value: Field) -> str:
    if not isinstance(value, str):
        return str(value)
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
