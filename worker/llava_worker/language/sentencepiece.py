"""Reads SentencePiece's ``tokenizer.model``, the only tokenizer file in many original checkpoints.

Only vocabularies like Llama's are supported: byte-pair encoding, one piece for each byte, and no text
normalization. The file is a protobuf message (see sentencepiece_model.proto). The following fields are used:

    1   a piece: 1 text, 2 score (fp32), 3 type (see the constants below)
    2   trainer: 3 algorithm (2 is byte-pair encoding)
    3   normalizer: 2 substitutions, 3 whether a space is prepended, 4 whether repeated spaces are merged
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llava_worker.language.tokenizer import TokenizerError
from llava_worker.model.config.untrusted_file import read_bytes, read_json_object

__all__ = ["read_sentencepiece"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_BPE = 2
_SPACE = "▁"
# Gemma's file, one of the largest, is 4 MB and has 256,000 pieces. All ways to split a piece are enumerated.
_MAX_BYTES, _MAX_PIECES, _MAX_PIECE_LENGTH = 8 << 20, 1 << 19, 128
_MAX_ADDED_TOKENS = 1 << 16

Value = int | bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    type: int


def read_sentencepiece(path: Path, *, prefix_scheme: str = "first") -> Tokenizer:
    """Read the file and the ``added_tokens.json`` next to it. Raises TokenizerError.

    ``prefix_scheme`` applies if the model prepends a space to a text. "first" prepends it only to the
    beginning of a prompt, "always" also after special tokens.
    """
    try:
        message = list(islice(_fields(read_bytes(path, max_bytes=_MAX_BYTES)), _MAX_PIECES + 1))
        if len(message) > _MAX_PIECES:
            raise ValueError(f"it has more than {_MAX_PIECES} pieces")
        pieces = [_parse_piece(value) for number, value in message if number == 1]
        trainer, normalizer = (dict(_fields(_last_field(message, number))) for number in (2, 3))
    except (ValueError, struct.error, TypeError) as error:
        raise TokenizerError(f"The file {path} is not a valid SentencePiece model: {error}") from error
    _check_supported(path, pieces, trainer, normalizer)
    scheme = prefix_scheme if normalizer.get(3, 1) == 1 else "never"
    tokenizer = _create_tokenizer(pieces, prefix_scheme=scheme)
    _add_tokens(tokenizer, path.with_name("added_tokens.json"))
    return tokenizer


def _check_supported(
    path: Path, pieces: list[_Piece], trainer: dict[int, Value], normalizer: dict[int, Value]
) -> None:
    texts = {piece.text for piece in pieces}
    unsupported = {
        "an algorithm other than byte-pair encoding": trainer.get(3, 1) != _BPE,
        "missing byte pieces": sum(piece.type == _BYTE for piece in pieces) != 256,
        "text normalization": bool(normalizer.get(2)),
        "merging of repeated spaces": normalizer.get(4, 1) == 1,
        "user-defined symbols": any(
            piece.type == _USER_DEFINED and not re.fullmatch("<.+>", piece.text) for piece in pieces
        ),
        "duplicate pieces": len(texts) != len(pieces),
    }
    features = ", ".join(feature for feature, is_present in unsupported.items() if is_present)
    if features:
        raise TokenizerError(
            f"The tokenizer {path} has unsupported features: {features}. Save the tokenizer with "
            "transformers, which writes a tokenizer.json."
        )


def _create_tokenizer(pieces: list[_Piece], *, prefix_scheme: str) -> Tokenizer:
    vocabulary = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.type == _UNKNOWN), None)
    model = models.BPE(
        vocabulary, _merges(pieces, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=prefix_scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_scheme != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    special = [piece.text for piece in pieces if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def _merges(pieces: list[_Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return every way to split a piece into two other pieces, sorted by the piece's score (highest first).

    SentencePiece only compares the scores of whole pieces. The tokenizers library also requires an order for
    splits of the same piece. As in transformers, such splits are ordered by the IDs of their two parts.
    """
    joinable = {piece.text for piece in pieces if piece.type == _NORMAL}
    ranked = sorted(
        (piece for piece in pieces if piece.type == _NORMAL and len(piece.text) > 1),
        key=lambda piece: -piece.score,
    )
    merges: list[tuple[str, str]] = []
    for piece in ranked:
        pairs = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        known = [(left, right) for left, right in pairs if left in joinable and right in joinable]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _add_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """Add the tokens from the file, for example ``{"<pad>": 32000}``.

    Their IDs must directly follow the IDs of the model's tokens.
    """
    added = read_json_object(path)
    if len(added) > _MAX_ADDED_TOKENS or not all(type(token_id) is int for token_id in added.values()):
        raise TokenizerError(
            f"{path} is invalid. It must contain at most {_MAX_ADDED_TOKENS} tokens and their IDs."
        )
    for text, token_id in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        if tokenizer.token_to_id(text) != token_id:
            raise TokenizerError(
                f"The token {text!r} in {path} has the ID {token_id}, which is not the next free ID."
            )


def _parse_piece(value: Value) -> _Piece:
    fields = dict(_fields(value))
    text, score = fields.get(1), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise TypeError("a piece has no text or an invalid score")
    if len(text) > _MAX_PIECE_LENGTH:
        raise ValueError(f"a piece is {len(text)} bytes long; the limit is {_MAX_PIECE_LENGTH}")
    return _Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], int(fields.get(3, _NORMAL)))


def _last_field(message: list[tuple[int, Value]], number: int) -> Value:
    return next((value for field, value in reversed(message) if field == number), b"")


def _fields(data: Value) -> Iterator[tuple[int, Value]]:
    """Yield the fields of a protobuf message.

    Integers are yielded as ``int``, all other values as ``bytes``.
    """
    if not isinstance(data, bytes):
        raise TypeError("a field contains a number instead of a message")
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        if wire_type == 2:
            length, offset = _varint(data, offset)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if offset + length > len(data):
            raise ValueError("the data ends in the middle of a field")
        yield number, data[offset : offset + length]
        offset += length


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Decode an integer stored with seven bits per byte.

    Return the integer and the offset of the next byte.
    """
    value = 0
    for index, byte in enumerate(data[offset : offset + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, offset + index + 1
    raise ValueError("the data ends in the middle of a number")
