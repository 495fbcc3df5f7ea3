"""Incremental detokenization returns only complete characters and never part of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_worker.language.detokenizer import Detokenizer, detokenize
from llava_worker.language.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


class SpacePrefixTokenizer(ByteTokenizer):
    """A byte tokenizer that adds a leading space, as Llama's does."""

    strips_leading_space = True


def stream(text: str, stop: list[str] | None = None) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(TOKENIZER, stop or [])
    pieces = [detokenizer.push(token_id) for token_id in TOKENIZER.encode(text)]
    return [*pieces, detokenizer.flush()], detokenizer


@given(st.text())
def test_streamed_pieces_concatenate_to_the_text(text: str) -> None:
    pieces, _ = stream(text)
    assert "".join(pieces) == text


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_no_piece_ends_within_a_character(text: str) -> None:
    pieces, _ = stream(text)
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, 258)), st.sampled_from([TOKENIZER, SpacePrefixTokenizer()]))
def test_the_text_of_all_tokens_equals_the_streamed_text(
    token_ids: list[int], tokenizer: ByteTokenizer
) -> None:
    detokenizer = Detokenizer(tokenizer)
    streamed = "".join(detokenizer.push(token_id) for token_id in token_ids) + detokenizer.flush()
    assert detokenize(tokenizer, token_ids) == streamed


def test_replacement_character_written_by_the_model_is_kept() -> None:
    assert "".join(stream("a\ufffdb")[0]) == "a\ufffdb"


def test_character_of_several_tokens_is_returned_with_its_last_token() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(token_id) for token_id in "🦙".encode()] == ["", "", "", "🦙"]


def test_incomplete_character_at_the_end_is_one_replacement_character() -> None:
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
def test_one_leading_space_of_llama_is_removed(text: str, expected: str) -> None:
    detokenizer = Detokenizer(SpacePrefixTokenizer())
    assert "".join(detokenizer.push(token_id) for token_id in text.encode()) == expected


def test_possible_beginning_of_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["END"])
    assert [detokenizer.push(token_id) for token_id in b"aEND"] == ["a", "", "", ""]
    assert detokenizer.is_stopped
    assert detokenizer.flush() == ""


def test_held_back_text_is_returned_once_it_cannot_be_a_stop_string() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["END"])
    assert [detokenizer.push(token_id) for token_id in b"EENx"] == ["", "E", "", "ENx"]
    assert not detokenizer.is_stopped


def test_held_back_text_is_returned_at_the_end() -> None:
    assert "".join(stream("the EN", ["END"])[0]) == "the EN"


def test_no_text_follows_a_stop_string() -> None:
    pieces, detokenizer = stream("one\n\ntwo", ["\n\n"])
    assert "".join(pieces) == "one"
    assert detokenizer.push(0x61) == ""


def test_empty_stop_string_is_ignored() -> None:
    assert "".join(stream("text", [""])[0]) == "text"


ALPHABET = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


class ChunkTokenizer(ByteTokenizer):
    """A byte tokenizer with additional tokens, starting at ID 1000, that split text in different ways."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id - 1000].encode()


@given(ALPHABET, STOPS, st.data())
def test_output_does_not_depend_on_how_a_text_is_split_into_tokens(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    coarse = Detokenizer(ChunkTokenizer(pieces), stop)
    text_of_coarse = "".join(coarse.push(1000 + index) for index in range(len(pieces))) + coarse.flush()
    fine, detokenizer = stream(text, stop)
    assert text_of_coarse == "".join(fine)
    assert coarse.is_stopped == detokenizer.is_stopped


@given(ALPHABET, STOPS)
def test_output_never_contains_a_stop_string(text: str, stop: list[str]) -> None:
    output = "".join(stream(text, stop)[0])
    assert not any(string in output for string in stop)
    assert text.startswith(output)
