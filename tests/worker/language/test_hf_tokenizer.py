"""Tokenizers from files treat user text as plain text, decode tokens to bytes and reject unknown formats."""

from __future__ import annotations

import json
from pathlib import Path

import llava_worker
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.tokenizer import TokenizerError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TINY_FOLDER = Path(llava_worker.__file__).parent / "tiny"
TINY = HFTokenizer(TINY_FOLDER)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("typed", ["<s>", "</s>", "<image>", "<pad>", "<unk>", "<0x0A>", "a</s>b <image> c"])
def test_user_text_never_becomes_a_special_token(typed: str) -> None:
    ids = TINY.encode(typed)
    specials = {TINY.special_id(token) for token in ("<unk>", "<s>", "</s>", "<image>", "<pad>")}
    assert not specials & set(ids)
    assert b"".join(TINY.token_bytes(token_id) for token_id in ids) == f" {typed}".encode()


@pytest.mark.parametrize("mark", ["<image>", "<im_start>"])
def test_image_marks_are_special_even_if_the_file_declares_them_as_ordinary(
    mark: str, tmp_path: Path
) -> None:
    description = json.loads((TINY_FOLDER / "tokenizer.json").read_text("utf-8"))
    used = {token["content"]: token for token in description["added_tokens"]}
    token = used.get(mark) or {
        **used["<image>"],
        "content": mark,
        "id": 1 + max(t["id"] for t in used.values()),
    }
    token["special"] = False
    description["added_tokens"] = list({**used, mark: token}.values())
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.special_id(mark) not in tokenizer.encode(f"a {mark} b")


def test_an_added_token_with_the_id_of_another_token_is_rejected(tmp_path: Path) -> None:
    description = json.loads((TINY_FOLDER / "tokenizer.json").read_text("utf-8"))
    used = {token["content"]: token["id"] for token in description["added_tokens"]}
    description["added_tokens"].append({**description["added_tokens"][0], "id": 5000, "content": "<extra>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    with pytest.raises(
        TokenizerError, match=r"'<extra>' has the ID 5000, but .* Add the token to model.vocab"
    ):
        HFTokenizer(tmp_path)

    description["model"]["vocab"] |= {**used, "<extra>": 5000}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    assert HFTokenizer(tmp_path).special_id("<extra>") == 5000


def test_a_file_without_added_tokens_is_read(tmp_path: Path) -> None:
    description = json.loads((TINY_FOLDER / "tokenizer.json").read_text("utf-8"))
    del description["added_tokens"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    assert HFTokenizer(tmp_path).encode("Hello") == TINY.encode("Hello")


@given(TEXT)
def test_token_bytes_concatenate_to_the_text(text: str) -> None:
    ids = TINY.encode(text)
    prefix = " " if text else ""
    assert b"".join(TINY.token_bytes(token_id) for token_id in ids).decode() == (prefix + text).replace(
        "▁", " "
    )


@given(TEXT)
def test_a_text_has_at_least_one_token_per_maximum_number_of_bytes(text: str) -> None:
    assert TINY.max_token_bytes is not None
    assert len(TINY.encode(text)) * TINY.max_token_bytes >= len(text.encode())


@pytest.mark.parametrize("strips", ["lstrip", "rstrip"])
def test_a_token_is_unlimited_if_an_added_token_includes_white_space(strips: str, tmp_path: Path) -> None:
    description = json.loads((TINY_FOLDER / "tokenizer.json").read_text("utf-8"))
    description["added_tokens"][0][strips] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    assert HFTokenizer(tmp_path).max_token_bytes is None


def test_a_token_is_unlimited_if_the_normalizer_can_shorten_a_text(tmp_path: Path) -> None:
    description = json.loads((TINY_FOLDER / "tokenizer.json").read_text("utf-8"))
    description["normalizer"] = {"type": "NFC"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    assert HFTokenizer(tmp_path).max_token_bytes is None


@given(st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs"])))
def test_detokenizer_output_matches_the_tokenizers_library(text: str) -> None:
    reference = Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json"))
    detokenizer = Detokenizer(TINY)
    ids = TINY.encode(text)
    streamed = "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.flush()
    assert streamed == reference.decode(ids)


def test_special_and_unknown_tokens_have_no_bytes() -> None:
    assert TINY.token_bytes(TINY.special_id("</s>")) == b""
    assert TINY.token_bytes(10_000_000) == b""
    assert TINY.special_name(TINY.special_id("</s>")) == "</s>"
    assert TINY.special_name(10_000_000) == "token_id:10000000"
    assert TINY.special_name(TINY.encode("a")[0]) == ""


def test_a_piece_that_only_resembles_a_byte_is_text(tmp_path: Path) -> None:
    text = (TINY_FOLDER / "tokenizer.json").read_text("utf-8").replace("<0x41>", "<0xZZ>")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    token_id = TINY.special_id("<0x41>")
    assert TINY.token_bytes(token_id) == b"A"
    assert HFTokenizer(tmp_path).token_bytes(token_id) == b"<0xZZ>"


def test_padding_in_the_file_is_ignored(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json"))
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(1)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert HFTokenizer(tmp_path).encode("Hello, world") == TINY.encode("Hello, world")


def test_a_vocabulary_larger_than_the_model_is_rejected() -> None:
    assert HFTokenizer(TINY_FOLDER, vocab_size=1200).bos_token_id is not None
    with pytest.raises(TokenizerError, match="has only 300 embeddings"):
        HFTokenizer(TINY_FOLDER, vocab_size=300)


def test_error_for_a_missing_special_token_names_it() -> None:
    with pytest.raises(TokenizerError, match="<nothing>"):
        TINY.special_id("<nothing>")


@pytest.fixture
def byte_level(tmp_path: Path) -> HFTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return HFTokenizer(tmp_path)


def test_byte_level_token_bytes_concatenate_to_the_text(byte_level: HFTokenizer) -> None:
    text = " Grüße, 🦙!\n<|im_end|>"
    ids = byte_level.encode(text)
    assert byte_level.special_id("<|im_end|>") not in ids
    assert b"".join(byte_level.token_bytes(token_id) for token_id in ids) == text.encode()


def test_byte_level_tokenizer_has_no_bos_and_no_leading_space(byte_level: HFTokenizer) -> None:
    assert byte_level.bos_token_id is None
    assert not byte_level.strips_leading_space


def test_folder_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        HFTokenizer(tmp_path)


def test_invalid_tokenizer_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="could not be read"):
        HFTokenizer(tmp_path)


def test_unsupported_decoder_is_rejected(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="WordPiece"):
        HFTokenizer(tmp_path)


def test_tokenizer_that_encodes_text_as_a_special_token_is_rejected(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer.decoder = Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json")).decoder
    tokenizer.add_special_tokens([AddedToken("</s>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="encodes the plain text '</s>' as special token 1"):
        HFTokenizer(tmp_path)
