"""A SentencePiece ``tokenizer.model``, all that many of the original's checkpoints have, for the library.

Read are byte-pair vocabularies with a piece for every byte and for text as it is: Llama's kind. The file is
one protobuf message (sentencepiece_model.proto); the fields that matter here:

    1   a piece: 1 text, 2 score (fp32), 3 type, one of those below
    2   how it was trained: 3 algorithm (2 is byte-pair)
    3   what happens to text before: 2 substitutions, 3 a space is put first, 4 spaces are squeezed
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llava_worker.language.tokenizer import TokenizerError

__all__ = ["read_sentencepiece"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_BYTE_PAIR = 2
_SPACE = "▁"

Value = int | bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    kind: int


def read_sentencepiece(path: Path) -> Tokenizer:
    """With the tokens that ``added_tokens.json`` beside it adds. Raises TokenizerError for other kinds."""
    try:
        message = list(_fields(path.read_bytes()))
        pieces = [_piece(value) for number, value in message if number == 1]
        trained, normal = (dict(_fields(_last(message, number))) for number in (2, 3))
    except (ValueError, struct.error, TypeError) as error:
        raise TokenizerError(f"{path} is not a SentencePiece model: {error}") from error
    _check(path, pieces, trained, normal)
    tokenizer = _tokenizer(pieces, has_prefix=normal.get(3, 1) == 1)
    _add(tokenizer, path.with_name("added_tokens.json"))
    return tokenizer


def _check(path: Path, pieces: list[_Piece], trained: dict[int, Value], normal: dict[int, Value]) -> None:
    texts = {piece.text for piece in pieces}
    unserved = {
        "an algorithm other than byte-pair": trained.get(3, 1) != _BYTE_PAIR,
        "no piece for every byte": sum(piece.kind == _BYTE for piece in pieces) != 256,
        "substitutions in the text": bool(normal.get(2)),
        "squeezed spaces": normal.get(4, 1) == 1,
        "words that always are one piece": any(
            piece.kind == _USER_DEFINED and not re.fullmatch("<.+>", piece.text) for piece in pieces
        ),
        "a piece twice": len(texts) != len(pieces),
    }
    found = [what for what, is_so in unserved.items() if is_so]
    if found:
        raise TokenizerError(
            f"{path} has {', '.join(found)}, which is not read here: save the tokenizer with transformers, "
            "which writes a tokenizer.json"
        )


def _tokenizer(pieces: list[_Piece], *, has_prefix: bool) -> Tokenizer:
    vocabulary = {piece.text: number for number, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None)
    model = models.BPE(
        vocabulary, _merges(pieces, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    scheme = "first" if has_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if has_prefix else [])])
    marks = [piece.text for piece in pieces if piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def _merges(pieces: list[_Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the piece with the highest score first.

    SentencePiece asks for the score of the whole alone; the library needs an order for the ways too, and gets
    that of transformers, by the ids of the two.
    """
    joinable = {piece.text for piece in pieces if piece.kind == _NORMAL}
    ranked = sorted(
        (piece for piece in pieces if piece.kind == _NORMAL and len(piece.text) > 1),
        key=lambda piece: -piece.score,
    )
    merges: list[tuple[str, str]] = []
    for piece in ranked:
        pairs = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        known = [(left, right) for left, right in pairs if left in joinable and right in joinable]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _add(tokenizer: Tokenizer, path: Path) -> None:
    """``{"<pad>": 32000}``: tokens after the model's own, without a gap."""
    added: dict[str, int] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for text, number in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        if tokenizer.token_to_id(text) != number:
            raise TokenizerError(f"{path} gives {text!r} the id {number}, which is not the next one")


def _piece(value: Value) -> _Piece:
    fields = dict(_fields(value))
    text, score = fields.get(1), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise TypeError("a piece without text, or with another kind of score")
    return _Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], int(fields.get(3, _NORMAL)))


def _last(message: list[tuple[int, Value]], number: int) -> Value:
    return next((value for field, value in reversed(message) if field == number), b"")


def _fields(data: Value) -> Iterator[tuple[int, Value]]:
    """(number, value) of a protobuf message: a whole number, or the bytes of anything else."""
    if not isinstance(data, bytes):
        raise TypeError("a number where a message should be")
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("it ends in the middle of a number")
