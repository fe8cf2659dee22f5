"""JSON Pointers: what they lead to is what a parser finds there, as it is written."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_kv.errors import InvalidArgumentError, NotFoundError
from iris_kv.json_text import Outline, outline, part_at

NAMES: Final = st.text(max_size=6) | st.text('ab~/0 1"\\é\U0001f600', max_size=4)
LEAVES: Final = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
VALUES: Final = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=30
)


def written(value: Any, dice: random.Random) -> str:
    """Return a value as JSON with whitespace drawn anew at every place where it may stand."""

    def space() -> str:
        return "".join(dice.choices(" \t\r\n", k=dice.choice((0, 0, 1, 3))))

    def text(of: str) -> str:
        return json.dumps(of, ensure_ascii=dice.random() < 0.5)

    if isinstance(value, dict):
        # A member that a later one of the same name replaces.
        first = [f"{space()}{text(next(iter(value)))}{space()}:[9]"] if value and dice.random() < 0.5 else []
        members = [f"{space()}{text(k)}{space()}:{space()}{written(v, dice)}{space()}" for k, v in value.items()]
        return "{" + ",".join(first + members) + ("" if members else space()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(f"{space()}{written(v, dice)}{space()}" for v in value) + ("" if value else space()) + "]"
    return text(value) if isinstance(value, str) else json.dumps(value)


def places(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    yield pointer, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, f"{pointer}/{index}")


def found(value: bytes, pointer: str) -> bytes:
    start, end = part_at(value, pointer, "application/json")
    return value[start:end]


@settings(deadline=None)
@given(value=VALUES, seed=st.integers(0, 10**6), mark=st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_a_pointer_leads_to_what_a_parser_finds_there(value: Any, seed: int, mark: bytes) -> None:
    raw = mark + b"\n" + written(value, random.Random(seed)).encode() + b" \r\n"

    for pointer, inner in places(value):
        part = found(raw, pointer)
        parsed = json.loads(part)
        assert parsed == inner
        assert type(parsed) is type(inner)
        assert part == (part.strip() if pointer else raw)


@pytest.mark.parametrize("between", [",", " ,\n\t"])
def test_every_element_of_a_long_mixed_array_is_found(between: str) -> None:
    dice = random.Random(5)
    elements = [dice.choice([n, -n, n / 7, str(n), "é\n", None, True, [n], {"n": n}]) for n in range(700)]
    elements[100:400] = range(300)
    elements.extend(range(1_000))
    raw = ("[" + between.join(map(json.dumps, elements)) + "]").encode()

    assert [json.loads(found(raw, f"/{n}")) for n in range(len(elements))] == elements
    assert outline(raw) == Outline((), 1_700, is_array=True)


RFC_6901: Final = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        *(("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/c%d", 2), ("/e^f", 3), ("/g|h", 4)),
        *(("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8)),
    ],
)
def test_the_examples_of_rfc_6901(pointer: str, value: Any) -> None:
    assert json.loads(found(json.dumps(RFC_6901).encode(), pointer)) == value


@pytest.mark.parametrize(
    ("pointer", "words"),
    [
        ("foo", 'pointer "foo" is no JSON Pointer; it is "" for the whole or starts with /'),
        ("/a~2", 'pointer "/a~2" is no JSON Pointer'),
        ("/a~", "in a name, ~ is written ~0 and / is ~1; mend it"),
        ("#/a", "is no JSON Pointer"),
    ],
)
def test_a_malformed_pointer_says_how_one_is_written(pointer: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        part_at(b"{}", pointer, "application/json")

    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("pointer", "words"),
    [
        ("/nam", 'pointer "/nam" leads nowhere; the value has 3 members, the nearest are "/name", "/rows", "/a~1b"'),
        ("/rows/3", '"/rows" is an array of 3; its indexes count from 0; take a pointer that is there'),
        *(
            (f"/rows/{index}", '"/rows" is an array of 3')
            for index in ("-", "-1", "01", "x", "", "\u0661", "9" * 5_000)
        ),
        ("/rows/0/x", '"/rows/0" is a number, which holds nothing'),
        ("/name/0", '"/name" is a string, which holds nothing'),
        ("/rows/2/none", '"/rows/2" has 0 members; take'),
        ("/rows/1/0", '"/rows/1" is an array of 0'),
        ("/\ud800", "the value has 3 members"),
        ("/" + "x" * 100_000, "the value has 3 members"),
    ],
    ids=lambda text: text[:12],
)
def test_a_pointer_that_leads_nowhere_says_what_is_there(pointer: str, words: str) -> None:
    with pytest.raises(NotFoundError) as raised:
        part_at(b'{"name": "n", "rows": [1, [], {}], "a/b": 0}', pointer, "application/json")

    assert words in str(raised.value)
    assert len(str(raised.value).encode()) < 1_000


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        *((b"", "Expecting value"), (b"text", "Expecting value"), (b'{"a": 1} x', "Extra data")),
        *((b'{"a": NaN}', "NaN is no JSON"), (b'{"a": [1,]}', "Expecting value"), (b'{"a": 1,}', "Expecting property")),
        *(
            (b"{'a': 1}", "Expecting property name"),
            (b'{"a" 1}', "Expecting ':'"),
            (b'{"a": 1 "b": 2}', "Expecting ','"),
        ),
        *(
            (b"[1 2]", "Expecting ','"),
            (b"[1}", "Expecting ','"),
            (b'{"a": 1]', "Expecting ','"),
            (b"[1", "Expecting ','"),
            (b'{"a": 1', "Expecting ','"),
            (b'{"a', "Unterminated"),
        ),
        *(
            (b'{"a": 01}', "Expecting ','"),
            (b'["\x01"]', "Invalid control"),
            (b'{"a": \xff}', "can't decode byte 0xff"),
        ),
        *((b"[" + b"1," * 400 + b"+1]", "Expecting value"), (b'{"a":' * 100_000, "nested too deeply")),
        *((b"[" * 100_000 + b"]" * 100_000, "nested too deeply"), (b"{} ", "leads nowhere")),
    ],
    ids=lambda each: str(each[:24]),
)
@pytest.mark.parametrize("pointer", ["/a", "/0", "/0" * 50_000], ids=["member", "index", "deep"])
def test_what_is_no_json_is_refused_with_its_type(value: bytes, problem: str, pointer: str) -> None:
    with pytest.raises((InvalidArgumentError, NotFoundError)) as raised:
        part_at(value, pointer, "text/x")

    text = str(raised.value)
    assert problem in text
    assert problem == "leads nowhere" or text.startswith(
        'invalid_argument: pointer needs JSON, and this value of type "text/x"'
    )
    assert len(text) < 1_000


@pytest.mark.parametrize(
    ("value", "pointer", "part"),
    [
        (b'{"a": 1, "a": [2, 3]}', "/a/1", b"3"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "/a", b"9" * 100_000),
        (b'{"a": 1e999999, "b": -0.0E+1}', "/b", b"-0.0E+1"),
        (b'{"\\ud800": "\\udfff", "b": 1}', "/b", b"1"),
        (b'{"\\ud800": "\\udfff"}', "/\ud800", b'"\\udfff"'),
        ('["\U0001f600é", "é"]'.encode(), "/1", '"é"'.encode()),
    ],
    ids=lambda each: str(each[:16]),
)
def test_unusual_json_is_found_as_it_is_written(value: bytes, pointer: str, part: bytes) -> None:
    assert found(value, pointer) == part


def test_the_last_of_two_members_counts_even_where_it_leads_nowhere() -> None:
    with pytest.raises(NotFoundError, match=r'"/a" is a number'):
        found(b'{"a": {"b": 1}, "a": 2}', "/a/b")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"a": 1, "b": {"c": 2}, "a": 3}', Outline(("a", "b"), 3, is_array=False)),
        (b"[]", Outline((), 0, is_array=True)),
        (b'"text"', None),
        (b"{", None),
    ],
)
def test_an_outline_names_what_stands_directly_in_a_value(value: bytes, expected: Outline | None) -> None:
    assert outline(value) == expected


def test_five_megabytes_are_searched_in_less_than_a_second() -> None:
    rows = [{"id": n, "name": f"row {n}", "tags": ["a", "b"], "share": n / 7} for n in range(70_000)]
    raw = json.dumps({"rows": rows, "numbers": list(range(100_000))}).encode()
    assert len(raw) > 5_000_000

    started = time.process_time()
    parts = [found(raw, pointer) for pointer in ("/rows/69999/name", "/numbers/99999")]

    assert parts == [b'"row 69999"', b"99999"]
    assert time.process_time() - started < 2 * 1.0
