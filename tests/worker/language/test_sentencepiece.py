"""A tokenizer.model yields the same IDs as the equivalent tokenizer.json. Unsupported files are rejected.

The model is the subset of Llama's tokenizer in tests/data/prompts, converted to SentencePiece's file format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.tokenizer import TokenizerError

from tests.worker.language.llama_files import (
    CONTROL,
    FOLDER,
    NORMAL,
    UNIGRAM,
    USER_DEFINED,
    VOCABULARY,
    Piece,
    bytes_field,
    integer_field,
    llama_pieces,
    write_model,
)

LETTERS = sorted({letter for piece in VOCABULARY for letter in piece if VOCABULARY[piece] > 258})
TOKENIZER = HFTokenizer(FOLDER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(write_model(llama_pieces()))
    shutil.copy(FOLDER / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HFTokenizer:
    return HFTokenizer(folder, image_token_id=-200)


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
        (lambda: write_model(llama_pieces(), squeezes=True), "merging of repeated spaces"),
        (
            lambda: write_model(replace_piece(300, ("\n\n", 0.0, USER_DEFINED))),
            "user-defined symbols",
        ),
        (lambda: write_model(replace_piece(300, ("<s>", 0.0, NORMAL))), "duplicate pieces"),
        (lambda: write_model(llama_pieces())[:-3], "is not a valid SentencePiece model"),
        (lambda: b"\x80" * 40, "is not a valid SentencePiece model"),
        (lambda: integer_field(1, 5), "is not a valid SentencePiece model"),
        (lambda: write_model(replace_piece(300, ("a" * 1000, 0.0, NORMAL))), "the limit is 128"),
        (lambda: bytes_field(1, b"") * 600_000, "more than 524288 pieces"),
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
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        HFTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "bos_token"),
    [
        ({}, "<s>"),
        ({"tokenizer_config.json": {"legacy": False}}, "<s>"),
        (
            {"tokenizer_config.json": {}, "special_tokens_map.json": {"bos_token": {"content": "</s>"}}},
            "</s>",
        ),
        ({"tokenizer_config.json": {"bos_token": None}}, None),
    ],
)
def test_the_first_token_has_the_default_of_llama_unless_a_file_names_another(
    files: dict[str, object], bos_token: str | None, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "tokenizer.model", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), "utf-8")
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.bos_token == bos_token
    assert tokenizer.adds_bos is (bos_token is not None)
