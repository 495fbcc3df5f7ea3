"""A tokenizer.model gives the ids of the tokenizer.json that was made from it; other kinds are refused.

The model is the part of Llama's tokenizer in tests/data/prompts, written as SentencePiece writes it.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.tokenizer import TokenizerError

from tests.worker.language.test_prompt_goldens import FOLDER, GOLDENS, PART, WHOLE_FOLDER, ids

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_PAIR, UNIGRAM = 2, 1
VOCABULARY: dict[str, int] = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
LETTERS = sorted({letter for piece in VOCABULARY for letter in piece if VOCABULARY[piece] > 258})

Piece = tuple[str, float, int]


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    rest, last = value >> 7, value & 0x7F
    return bytes([last | 0x80]) + varint(rest) if rest else bytes([last])


def llamas_pieces() -> list[Piece]:
    """Ids that the part lacks are pieces that nothing uses."""
    text_of = {number: piece for piece, number in VOCABULARY.items() if number < 32000}
    kinds = {0: UNKNOWN, 1: CONTROL, 2: CONTROL} | dict.fromkeys(range(3, 259), BYTE)
    pieces = []
    for index in range(max(text_of) + 1):
        text, kind = text_of.get(index, f"<unused{index}>"), kinds.get(index, NORMAL)
        score = -1e9 if set(text) == {"▁"} else -float(max(index - 259, 0))
        pieces.append((text, score, kind if index in text_of else UNUSED))
    return pieces


def written(
    pieces: list[Piece], *, algorithm: int = BYTE_PAIR, substitutions: bytes = b"", squeezes: int = 0
) -> bytes:
    file = b"".join(
        block(1, block(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))
        for text, score, kind in pieces
    )
    normal = block(1, b"identity") + block(2, substitutions) + number(3, 1) + number(4, squeezes)
    return file + block(2, number(3, algorithm) + number(4, 32000)) + block(3, normal)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(written(llamas_pieces()))
    shutil.copy(FOLDER / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HFTokenizer:
    return HFTokenizer(folder, image_token_id=-200)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden["about"])
def test_conversations_have_the_originals_ids(tokenizer: HFTokenizer, golden: dict) -> None:
    assert ids(golden, tokenizer) == golden["ids"]


@settings(max_examples=200)
@given(text=st.text(st.sampled_from([*LETTERS, " ", "\n", "é", "🦙"]), max_size=60), is_first=st.booleans())
def test_any_text_has_the_ids_of_the_tokenizer_json(
    tokenizer: HFTokenizer, text: str, is_first: bool
) -> None:
    found = tokenizer.encode_segment(text, is_first=is_first)
    assert found == PART.encode_segment(text, is_first=is_first)
    assert [tokenizer.token_bytes(each) for each in found] == [PART.token_bytes(each) for each in found]


@pytest.mark.skipif(
    not (Path(WHOLE_FOLDER or "") / "tokenizer.model").is_file(),
    reason="LLAVA_LLAMA_TOKENIZER names no folder with a tokenizer.model",
)
def test_the_whole_tokenizer_model_gives_the_same_ids(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(Path(WHOLE_FOLDER or "") / name, tmp_path)
    whole = HFTokenizer(tmp_path, image_token_id=-200)
    assert [ids(golden, whole) for golden in GOLDENS] == [golden["ids"] for golden in GOLDENS]


def test_added_tokens_follow_the_models_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    first = len(llamas_pieces())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_end>": first + 1, "<im_start>": first}))
    tokenizer = HFTokenizer(tmp_path)
    assert [tokenizer.special_id(mark) for mark in ("<im_start>", "<im_end>")] == [first, first + 1]
    assert first not in tokenizer.encode("<im_start>")

    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": first + 1}))
    with pytest.raises(TokenizerError, match="which is not the next one"):
        HFTokenizer(tmp_path)


def test_a_tokenizer_json_comes_first(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(b"broken")
    assert HFTokenizer(tmp_path).encode("What") == PART.encode("What")


def changed(index: int, piece: Piece) -> list[Piece]:
    pieces = llamas_pieces()
    pieces[index] = piece
    return pieces


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: written(llamas_pieces(), algorithm=UNIGRAM), "an algorithm other than byte-pair"),
        (lambda: written(changed(3, ("<x>", 0.0, CONTROL))), "no piece for every byte"),
        (lambda: written(llamas_pieces(), substitutions=b"\1\2"), "substitutions in the text"),
        (lambda: written(llamas_pieces(), squeezes=1), "squeezed spaces"),
        (lambda: written(changed(300, ("\n\n", 0.0, USER_DEFINED))), "words that always are one piece"),
        (lambda: written(changed(300, ("<s>", 0.0, NORMAL))), "a piece twice"),
        (lambda: written(llamas_pieces())[:-3], "is not a SentencePiece model"),
        (lambda: b"\x80" * 40, "is not a SentencePiece model"),
        (lambda: number(1, 5), "is not a SentencePiece model"),
        (lambda: block(1, number(3, 1)), "is not a SentencePiece model"),
    ],
)
def test_what_cannot_be_read_as_it_was_meant_is_refused(
    tmp_path: Path, make: Callable[[], bytes], what: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(make())
    with pytest.raises(TokenizerError, match=what):
        HFTokenizer(tmp_path)


def test_a_folder_with_neither_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"needs one, or a tokenizer\.model"):
        HFTokenizer(tmp_path)
