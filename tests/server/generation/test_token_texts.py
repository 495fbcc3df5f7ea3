"""The output text is matched with its tokens, and no text is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from llava_server.generation.token_texts import TokenText, TokenTexts
from llava_wire.messages.event import TokenLogprob, TokenScore


def tokens(*pieces: bytes) -> list[TokenLogprob]:
    return [TokenLogprob(TokenScore(number, piece, -0.5)) for number, piece in enumerate(pieces)]


def parts(matched: list[TokenText]) -> list[tuple[str, bytes]]:
    return [(each.text, each.data) for each in matched]


def test_text_of_a_token_is_held_back_until_it_is_complete() -> None:
    texts = TokenTexts()
    text, matched = texts.feed(tokens(b"a", b"bE"), "ab")
    assert (text, parts(matched)) == ("a", [("a", b"a")])
    text, matched = texts.feed(tokens(b"x"), "Ex")
    assert (text, parts(matched)) == ("bEx", [("bE", b"bE"), ("x", b"x")])


def test_tokens_of_a_split_character_are_returned_together() -> None:
    texts = TokenTexts()
    assert parts(texts.feed(tokens(b"a\xc3", b"\xa9E"), "aé")[1]) == []
    text, matched = texts.feed([], "E")
    assert (text, parts(matched)) == ("aéE", [("a", b"a\xc3"), ("éE", b"\xa9E")])


def test_invalid_bytes_belong_to_the_token_with_the_last_of_them() -> None:
    _, matched = TokenTexts().feed(tokens(b"\xf0", b"\x9f", b"a", b"\xe2"), "\ufffda\ufffd", is_last=True)
    replacement = "\ufffd".encode()
    assert parts(matched) == [("", b""), ("\ufffd", replacement), ("a", b"a"), ("\ufffd", replacement)]


def test_each_token_is_returned_once_even_without_text() -> None:
    text, matched = TokenTexts().feed(tokens(b"", b"a", b"EN", b"D", b""), "a", is_last=True)
    assert (text, parts(matched)) == ("a", [("", b""), ("a", b"a"), ("", b""), ("", b""), ("", b"")])


def test_text_that_no_token_contains_is_not_lost() -> None:
    """The log of a worker of a different version can contain such text."""
    texts = TokenTexts()
    assert texts.feed(tokens(b"a"), "ONE")[0] == "O"
    assert texts.feed([], "", is_last=True) == ("NE", [])


@given(st.lists(st.binary(max_size=3), max_size=12), st.data())
def test_the_parts_do_not_depend_on_how_the_output_is_split_into_events(
    pieces: list[bytes], data: st.DataObject
) -> None:
    """The worker decodes the same bytes with Python's decoder, which this test uses too."""
    text = b"".join(pieces).decode(errors="replace")
    _, whole = TokenTexts().feed(tokens(*pieces), text, is_last=True)
    assert "".join(each.text for each in whole) == text
    assert b"".join(each.data for each in whole) == text.encode()

    cut = data.draw(st.integers(0, len(pieces)))
    available = b"".join(pieces[:cut]).decode(errors="ignore")
    sent = data.draw(st.integers(0, len(available))) if text.startswith(available) else 0
    texts = TokenTexts()
    released, first = texts.feed(tokens(*pieces)[:cut], text[:sent])
    assert released == "".join(each.text for each in first)
    assert released.encode() == b"".join(each.data for each in first)
    _, rest = texts.feed(tokens(*pieces)[cut:], text[sent:], is_last=True)
    assert parts(first + rest) == parts(whole)
