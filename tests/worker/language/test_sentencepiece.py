"""A tokenizer.model yields the same IDs as the equivalent tokenizer.json. Unsupported files are rejected.

The model is the subset of Llama's tokenizer in tests/data/prompts, converted to SentencePiece's file format.
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

from tests.worker.language.test_prompt_goldens import COMPLETE_FOLDER, FOLDER, TOKENIZER, assert_goldens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE, UNIGRAM = 2, 1
VOCABULARY: dict[str, int] = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
LETTERS = sorted({letter for piece in VOCABULARY for letter in piece if VOCABULARY[piece] > 258})

Piece = tuple[str, float, int]


def integer_field(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def bytes_field(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    rest, last = value >> 7, value & 0x7F
    return bytes([last | 0x80]) + varint(rest) if rest else bytes([last])


def llama_pieces() -> list[Piece]:
    """Return the pieces of the vocabulary, and fill the gaps between IDs with unused pieces."""
    text_of = {token_id: piece for piece, token_id in VOCABULARY.items() if token_id < 32000}
    kinds = {0: UNKNOWN, 1: CONTROL, 2: CONTROL} | dict.fromkeys(range(3, 259), BYTE)
    pieces = []
    for index in range(max(text_of) + 1):
        text, kind = text_of.get(index, f"<unused{index}>"), kinds.get(index, NORMAL)
        score = -1e9 if set(text) == {"▁"} else -float(max(index - 259, 0))
        pieces.append((text, score, kind if index in text_of else UNUSED))
    return pieces


def write_model(
    pieces: list[Piece], *, algorithm: int = BPE, substitutions: bytes = b"", squeezes: int = 0
) -> bytes:
    trainer = [integer_field(3, algorithm), integer_field(4, 32000)]
    normalizer = [bytes_field(1, b"identity"), bytes_field(2, substitutions)]
    normalizer += [integer_field(3, 1), integer_field(4, squeezes)]
    fields = [bytes_field(1, write_piece(*piece)) for piece in pieces]
    return b"".join([*fields, bytes_field(2, b"".join(trainer)), bytes_field(3, b"".join(normalizer))])


def write_piece(text: str, score: float, kind: int) -> bytes:
    score_field = varint(2 << 3 | 5) + struct.pack("<f", score)
    return bytes_field(1, text.encode()) + score_field + integer_field(3, kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(write_model(llama_pieces()))
    shutil.copy(FOLDER / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HFTokenizer:
    return HFTokenizer(folder, image_token_id=-200)


def test_conversations_have_the_token_ids_of_the_original(tokenizer: HFTokenizer) -> None:
    assert_goldens(tokenizer)


@settings(max_examples=200)
@given(text=st.text(st.sampled_from([*LETTERS, " ", "\n", "é", "🦙"]), max_size=60), is_first=st.booleans())
def test_any_text_has_the_same_token_ids_as_with_tokenizer_json(
    tokenizer: HFTokenizer, text: str, is_first: bool
) -> None:
    token_ids = tokenizer.encode_segment(text, is_first=is_first)
    assert token_ids == TOKENIZER.encode_segment(text, is_first=is_first)
    assert [tokenizer.token_bytes(token_id) for token_id in token_ids] == [
        TOKENIZER.token_bytes(token_id) for token_id in token_ids
    ]


@pytest.mark.skipif(
    not (Path(COMPLETE_FOLDER or "") / "tokenizer.model").is_file(),
    reason="LLAVA_LLAMA_TOKENIZER is not set to a folder with a tokenizer.model",
)
def test_complete_tokenizer_model_has_the_same_ids(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(Path(COMPLETE_FOLDER or "") / name, tmp_path)
    assert_goldens(HFTokenizer(tmp_path, image_token_id=-200))


def test_added_tokens_follow_the_tokens_of_the_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    first = len(llama_pieces())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_end>": first + 1, "<im_start>": first}))
    tokenizer = HFTokenizer(tmp_path)
    assert [tokenizer.special_id(mark) for mark in ("<im_start>", "<im_end>")] == [first, first + 1]
    assert first not in tokenizer.encode("<im_start>")

    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": first + 1}))
    with pytest.raises(TokenizerError, match="which is not the next free ID"):
        HFTokenizer(tmp_path)


def test_tokenizer_json_is_preferred(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(b"broken")
    assert HFTokenizer(tmp_path).encode("What") == TOKENIZER.encode("What")


def replace_piece(index: int, piece: Piece) -> list[Piece]:
    pieces = llama_pieces()
    pieces[index] = piece
    return pieces


@pytest.mark.parametrize(
    ("make_file", "error"),
    [
        (lambda: write_model(llama_pieces(), algorithm=UNIGRAM), "an algorithm other than byte-pair"),
        (lambda: write_model(replace_piece(3, ("<x>", 0.0, CONTROL))), "missing byte pieces"),
        (lambda: write_model(llama_pieces(), substitutions=b"\1\2"), "text normalization"),
        (lambda: write_model(llama_pieces(), squeezes=1), "merging of repeated spaces"),
        (
            lambda: write_model(replace_piece(300, ("\n\n", 0.0, USER_DEFINED))),
            "user-defined symbols",
        ),
        (lambda: write_model(replace_piece(300, ("<s>", 0.0, NORMAL))), "duplicate pieces"),
        (lambda: write_model(llama_pieces())[:-3], "is not a valid SentencePiece model"),
        (lambda: b"\x80" * 40, "is not a valid SentencePiece model"),
        (lambda: integer_field(1, 5), "is not a valid SentencePiece model"),
        (lambda: bytes_field(1, integer_field(3, 1)), "is not a valid SentencePiece model"),
    ],
)
def test_unsupported_and_corrupt_files_are_rejected(
    tmp_path: Path, make_file: Callable[[], bytes], error: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(make_file())
    with pytest.raises(TokenizerError, match=error):
        HFTokenizer(tmp_path)


def test_folder_with_neither_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"Neither tokenizer\.json nor tokenizer\.model exists"):
        HFTokenizer(tmp_path)
