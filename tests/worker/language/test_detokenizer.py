"""Streams of text: whole characters only, nothing of a stop string, the same however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.language.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


class SpacedTokenizer(ByteTokenizer):
    """Bytes with Llama's leading space."""

    strips_leading_space = True


def stream(text: str, stop: list[str] | None = None) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(TOKENIZER, stop or [])
    pieces = [detokenizer.push(token_id) for token_id in TOKENIZER.encode(text)]
    return [*pieces, detokenizer.flush()], detokenizer


@given(st.text())
def test_the_pieces_of_any_text_join_to_that_text(text: str) -> None:
    pieces, _ = stream(text)
    assert "".join(pieces) == text


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_no_piece_has_a_replacement_character_that_the_text_has_not(text: str) -> None:
    pieces, _ = stream(text)
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_replacement_character_that_the_model_wrote_stays() -> None:
    assert "".join(stream("a\ufffdb")[0]) == "a\ufffdb"


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(token_id) for token_id in "🦙".encode()] == ["", "", "", "🦙"]


def test_a_character_cut_off_by_the_end_is_one_replacement_character() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(token_id) for token_id in "🦙".encode()[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_have_no_text() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    ids = [TOKENIZER.bos_token_id, 0x61, TOKENIZER.image_token_id, 0x62, TOKENIZER.eos_token_id, 99999]
    assert "".join(detokenizer.push(token_id) for token_id in ids) == "ab"


@pytest.mark.parametrize(
    ("text", "expected"), [(" hello ", "hello "), ("  hello", " hello"), ("hello", "hello")]
)
def test_the_one_leading_space_of_llamas_scheme_is_not_part_of_the_answer(text: str, expected: str) -> None:
    detokenizer = Detokenizer(SpacedTokenizer())
    assert "".join(detokenizer.push(token_id) for token_id in text.encode()) == expected


def test_text_that_may_begin_a_stop_string_waits_until_it_is_clear() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["END"])
    assert [detokenizer.push(token_id) for token_id in b"aEND"] == ["a", "", "", ""]
    assert detokenizer.is_stopped
    assert detokenizer.flush() == ""


def test_text_that_only_looked_like_a_stop_string_is_given_out() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["END"])
    assert [detokenizer.push(token_id) for token_id in b"EENx"] == ["", "E", "", "ENx"]
    assert not detokenizer.is_stopped


def test_what_is_held_back_at_the_end_is_part_of_the_answer() -> None:
    assert "".join(stream("the EN", ["END"])[0]) == "the EN"


def test_nothing_follows_a_stop_string() -> None:
    pieces, detokenizer = stream("one\n\ntwo", ["\n\n"])
    assert "".join(pieces) == "one"
    assert detokenizer.push(0x61) == ""


def test_an_empty_stop_string_stops_nothing() -> None:
    assert "".join(stream("text", [""])[0]) == "text"


ALPHABET = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


class PairTokenizer(ByteTokenizer):
    """Ids from 1000 on are whole strings, to cut one text in many ways."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id - 1000].encode()


@given(ALPHABET, STOPS, st.data())
def test_a_stream_is_the_same_however_its_text_is_cut_into_tokens(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    coarse = Detokenizer(PairTokenizer(pieces), stop)
    answer = "".join(coarse.push(1000 + index) for index in range(len(pieces))) + coarse.flush()
    fine, detokenizer = stream(text, stop)
    assert answer == "".join(fine)
    assert coarse.is_stopped == detokenizer.is_stopped


@given(ALPHABET, STOPS)
def test_an_answer_never_contains_a_stop_string(text: str, stop: list[str]) -> None:
    answer = "".join(stream(text, stop)[0])
    assert not any(one in answer for one in stop)
    assert text.startswith(answer)
