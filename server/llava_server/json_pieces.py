"""Encode large response models in pieces.

The encoder holds the interpreter's lock, so a single call for a response of 19 MB would stop all other
threads for tens of milliseconds. Each call encodes about 64 KiB instead.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llava_server.response_model import ResponseModel

__all__ = ["encode_in_pieces"]

_PIECE_BYTES = 1 << 16
_SHORT_LIST = 32  # the items of longer lists, such as tokens, are assumed to be small


def encode_in_pieces(model: ResponseModel) -> bytes:
    """Return the same JSON text as ``msgspec.json.encode``."""
    return msgspec.json.encode(_with_encoded_lists(model))


def _with_encoded_lists(model: ResponseModel) -> ResponseModel:
    """Return a copy of the model in which long lists are replaced by their JSON text."""
    values = {name: getattr(model, name) for name in model.__struct_fields__}
    changes = {
        name: _encoded(value) for name, value in values.items() if isinstance(value, ResponseModel | list)
    }
    return msgspec.structs.replace(model, **changes) if changes else model


def _encoded(value: Any) -> Any:
    if isinstance(value, ResponseModel):
        return _with_encoded_lists(value)
    if len(value) <= _SHORT_LIST:
        return [_encoded(each) if isinstance(each, ResponseModel | list) else each for each in value]
    pieces, begin, length = [], 0, 1
    while begin < len(value):
        text = msgspec.json.encode(value[begin : begin + length])
        pieces.append(text[1:-1])
        begin += length
        length = min(2 * length, max(1, length * _PIECE_BYTES // len(text)))
    return msgspec.Raw(b"[" + b",".join(pieces) + b"]")
