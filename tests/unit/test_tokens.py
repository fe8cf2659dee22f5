"""Bounds that hold without the tokenizer, compared with the real one."""

from __future__ import annotations

import random
import string
from itertools import product
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iris_kv import tokens
from iris_kv.tokens import TokenCounter

REAL: Final = TokenCounter()
ESTIMATE: Final = TokenCounter(exact=False)
PIECES: Final = st.sampled_from(
    [*string.printable, *("'s", "'LL", "'re", "qj", "Qx", "ing", " the", "é", "字", "\ud7ff", "\U0001f600", "\ue000")]
)
ALPHABETS: Final = {
    "mixed-case letters": string.ascii_letters,
    "small letters": string.ascii_lowercase,
    "capitals": string.ascii_uppercase,
    "rare letters": "jkqxzJKQXZ",
    "letters and digits": string.ascii_letters + string.digits,
    "small letters and signs": string.ascii_lowercase + "'\"-_ \n",
    "signs": string.punctuation,
    "everything": "".join(map(chr, range(1, 0xD800))),
}


def test_every_pair_of_the_letters_counted_as_words_is_one_token() -> None:
    letters = tokens._PAIRING.decode()

    assert [a + b for a, b in product(letters, letters) if REAL.count(a + b) != 1] == []
    assert [a for a in letters if REAL.count(" " + a) != 1] == []


@settings(deadline=None, max_examples=1_000)
@given(text=st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=60))
def test_no_text_has_more_tokens_than_the_bound(text: str) -> None:
    assert REAL.count(text) <= ESTIMATE.at_most(text) <= len(text.encode())


@pytest.mark.parametrize("name", ALPHABETS)
def test_no_drawn_text_has_more_tokens_than_the_bound(name: str) -> None:
    dice = random.Random(20_260_102)
    texts = ["".join(dice.choices(ALPHABETS[name], k=dice.randint(1, 400))) for _ in range(300)]
    texts += [text[:n] * 50 for text in texts for n in (1, 2, 3, 5)]

    assert [text for text in texts if REAL.count(text) > ESTIMATE.at_most(text)] == []


def test_drawn_letters_have_1_4_bytes_a_token_but_chosen_ones_have_1() -> None:
    dice = random.Random(20_260_103)
    drawn = "".join(dice.choices(string.ascii_letters, k=100_000))

    assert len(drawn) / REAL.count(drawn) > tokens.WORD_BYTES_PER_TOKEN
    # So letters as such cannot be counted at 1.4.
    assert REAL.count("qX" * 1_000) == 2_000


def test_prose_is_not_cut_to_half_of_what_the_bound_allows() -> None:
    prose = "Read the newest entry of every scope, and say what is wrong with it.\n" * 400

    assert len(prose) / ESTIMATE.at_most(prose) > 1.2


@pytest.mark.parametrize("counter", [REAL, ESTIMATE], ids=["exact", "estimated"])
@pytest.mark.parametrize(
    "text", ["word " * 9_000, "a" * 30_000 + "字" * 9_000, "字" * 9_000 + " " * 40_000, "qX" * 9_000]
)
def test_a_prefix_fits_and_is_at_most_a_few_tokens_short(counter: TokenCounter, text: str) -> None:
    for most in (1, 2, 100, 3_000, 8_000):
        kept = counter.fitting(text, most)

        assert text.startswith(kept)
        assert counter.at_most(kept) <= most
        assert kept == text or counter.at_most(text[: len(kept) + 1]) > most - 3
