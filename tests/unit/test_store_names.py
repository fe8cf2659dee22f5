"""The names of value files: one for each generation of each key, safe on every file system."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_kv.errors import InvalidArgumentError
from iris_kv.model import SCOPES
from iris_kv.store.names import base36, check_key, seq_of, value_file

CONTENT_TYPES = st.sampled_from(["text/plain", "TEXT/Markdown; charset=utf-8", "application/json", "x/y", "a/../../b"])
WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))}


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except InvalidArgumentError:
        return False
    return True


KEYS = st.text(min_size=1, max_size=512).filter(_is_key)


@settings(max_examples=200, derandomize=True, database=None)
@given(key=KEYS, scope=st.sampled_from(SCOPES), seq=st.integers(0, 2**63 - 1), content_type=CONTENT_TYPES)
def test_a_name_is_short_and_safe_everywhere(key, scope, seq, content_type):
    name = value_file(scope, key, seq, content_type)

    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?__[0-9a-f]{8}-[0-9a-z]+\.[a-z0-9]+", name)
    assert len(name.encode()) <= 80
    assert name.partition(".")[0] not in WINDOWS_DEVICES
    assert name.casefold() == name
    assert seq_of(name) == seq


@settings(max_examples=200, derandomize=True, database=None)
@given(generations=st.lists(st.tuples(st.sampled_from(SCOPES), KEYS), min_size=2, max_size=20))
def test_no_two_generations_share_a_name(generations):
    names = {value_file(scope, key, seq, "text/plain") for seq, (scope, key) in enumerate(generations)}
    assert len(names) == len(generations)


@pytest.mark.parametrize("key", ["CON", "nul", "com1", "..", ".", "/", "\U0001f600", "-", "a.", "C:\\x", "__", "~"])
def test_odd_keys_get_plain_names(key):
    assert re.fullmatch(r"(?:[a-z0-9]+(?:-[a-z0-9]+)*)__[0-9a-f]{8}-1\.txt", value_file("task", key, 1, "text/plain"))


@pytest.mark.parametrize(
    "file",
    [".tmp-0011223344556677", ".index.json", "a__01234567-.txt", "a__0123456-1.txt", "a.txt", "../a__01234567-1.txt"],
)
def test_other_files_have_no_number(file):
    assert seq_of(file) is None


@given(st.integers(0, 2**70))
def test_base_36_is_what_int_reads(number):
    assert int(base36(number), 36) == number
