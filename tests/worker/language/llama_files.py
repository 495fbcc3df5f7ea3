"""The golden tokenizer, a subset of Llama's, in each file format and for each kind of checkpoint.

A vocabulary is named as in tests/data/prompts/conversations.jsonl: "llama" (LLaVA-1.5), "marks" (with the
marks of the first LLaVA), "chatml" (with ChatML's tokens) or "yi" (the same tokens, and no prefix).
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any, Literal

__all__ = ["FILE_FORMATS", "FOLDER", "Piece", "bytes_field", "integer_field", "llama_pieces", "write_files"]
__all__ += ["BPE", "BYTE", "CONTROL", "NORMAL", "UNIGRAM", "USER_DEFINED", "VOCABULARY", "write_model"]

FOLDER = Path(__file__).parents[2] / "data" / "prompts"
VOCABULARY: dict[str, int] = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
# tokenizer.json of transformers 5 (legacy false and true) and of transformers 4.37.2, and tokenizer.model
FileFormat = Literal["first", "always", "normalizer", "model"]
FILE_FORMATS: tuple[FileFormat, ...] = ("first", "always", "normalizer", "model")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE, UNIGRAM = 2, 1
NUM_PIECES = 32000
CHATML = ("<|im_start|>", "<|im_end|>")
ADDED_TOKENS = {
    "llama": ("<image>", "<pad>"),
    "marks": ("<im_patch>", "<im_start>", "<im_end>"),
    "chatml": CHATML,
    "yi": CHATML,
}

Piece = tuple[str, float, int]


def write_files(
    folder: Path,
    file_format: FileFormat,
    *,
    vocabulary: str = "llama",
    legacy: bool | None = None,
    model_type: str | None = "llava_llama",
) -> None:
    """Write the tokenizer files of a checkpoint, and a config.json unless ``model_type`` is None.

    ``legacy`` is None if the setting is absent.
    """
    is_chatml = vocabulary in ("chatml", "yi")
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": CHATML[1] if is_chatml else "</s>"}
    config["tokenizer_class"] = "LlamaTokenizer"
    if legacy is not None:
        config["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if file_format != "model":
        description = json.dumps(tokenizer_json(file_format, vocabulary), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(description, "utf-8")
        return
    is_yi = vocabulary == "yi"
    (folder / "tokenizer.model").write_bytes(llama_model(is_yi=is_yi))
    if not is_yi:
        ids = {token: NUM_PIECES + index for index, token in enumerate(ADDED_TOKENS[vocabulary])}
        (folder / "added_tokens.json").write_text(json.dumps(ids))


def tokenizer_json(file_format: FileFormat, vocabulary: str) -> dict[str, Any]:
    description: dict[str, Any] = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    special, added = description["added_tokens"][:3], ADDED_TOKENS[vocabulary]
    tokens = [{**special[0], "id": NUM_PIECES + index, "content": text} for index, text in enumerate(added)]
    description["added_tokens"] = special + tokens
    description["model"]["vocab"] |= {token["content"]: token["id"] for token in tokens}
    if vocabulary == "yi":
        description["pre_tokenizer"]["prepend_scheme"] = "never"
    elif file_format == "normalizer":
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        normalizers = [{"type": "Prepend", "prepend": "▁"}, space]
        description["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
        description["pre_tokenizer"] = None
    else:
        description["pre_tokenizer"]["prepend_scheme"] = file_format
    return description


@cache
def llama_model(*, is_yi: bool) -> bytes:
    pieces = llama_pieces() + [(text, 0.0, USER_DEFINED) for text in CHATML if is_yi]
    return write_model(pieces, has_prefix=not is_yi)


def llama_pieces() -> list[Piece]:
    """Return the pieces of the vocabulary, and fill the gaps between IDs with unused pieces."""
    text_of = {token_id: piece for piece, token_id in VOCABULARY.items()}
    kinds = {0: UNKNOWN, 1: CONTROL, 2: CONTROL} | dict.fromkeys(range(3, 259), BYTE)
    pieces = []
    for index in range(NUM_PIECES):
        text, kind = text_of.get(index, f"<unused{index}>"), kinds.get(index, NORMAL)
        score = -1e9 if set(text) == {"▁"} else -float(max(index - 259, 0))
        pieces.append((text, score, kind if index in text_of else UNUSED))
    return pieces


def write_model(
    pieces: list[Piece],
    *,
    algorithm: int = BPE,
    substitutions: bytes = b"",
    has_prefix: bool = True,
    squeezes: bool = False,
) -> bytes:
    """Return the content of a ``tokenizer.model`` (see sentencepiece_model.proto)."""
    trainer = [integer_field(3, algorithm), integer_field(4, NUM_PIECES)]
    normalizer = [bytes_field(1, b"identity"), bytes_field(2, substitutions)]
    normalizer += [integer_field(3, has_prefix), integer_field(4, squeezes)]
    fields = [bytes_field(1, write_piece(*piece)) for piece in pieces]
    return b"".join([*fields, bytes_field(2, b"".join(trainer)), bytes_field(3, b"".join(normalizer))])


def write_piece(text: str, score: float, kind: int) -> bytes:
    score_field = varint(2 << 3 | 5) + struct.pack("<f", score)
    return bytes_field(1, text.encode()) + score_field + integer_field(3, kind)


def integer_field(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def bytes_field(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    rest, last = value >> 7, value & 0x7F
    return bytes([last | 0x80]) + varint(rest) if rest else bytes([last])
