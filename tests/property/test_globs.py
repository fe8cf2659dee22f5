"""Globs over keys: what they match, and that no pattern takes long."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iris_kv.errors import InvalidArgumentError
from iris_kv.globs import MAX_CHARS, MAX_SETS, Glob

PATTERNS = st.text(alphabet="abc-!]*?[é/", max_size=12)
TEXTS = st.text(alphabet="abc-!]*?[é/", max_size=12)


@given(PATTERNS, TEXTS)
def test_a_glob_matches_what_the_standard_library_matches(pattern: str, text: str) -> None:
    assert Glob(pattern).matches(text) is fnmatchcase(text, pattern)


@given(PATTERNS, TEXTS)
def test_what_matches_starts_with_the_literal_start(pattern: str, text: str) -> None:
    glob = Glob(pattern)

    assert text.startswith(glob.prefix) or not glob.matches(text)


@pytest.mark.parametrize("pattern", ["*a" * 255 + "b", "?*" * 256, "*[a]" * 16 + "*a" * 200 + "b", "*" * 512])
def test_a_pattern_that_would_backtrack_is_matched_in_one_pass(pattern: str) -> None:
    glob = Glob(pattern)
    started = time.process_time()

    for _ in range(100):
        glob.matches("a" * 512)

    # Measured: 0.01 s; backtracking takes longer than the universe has.
    assert time.process_time() - started < 2


@pytest.mark.parametrize("pattern", ["x" * (MAX_CHARS + 1), "[a]" * (MAX_SETS + 1)])
def test_a_pattern_that_is_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match="at most"):
        Glob(pattern)
