"""Heartbeats: what a worker announces about itself, its model and how images are preprocessed for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import msgspec

from llava_wire.messages.commands import CommandStatus

__all__ = ["Heartbeat", "ImageSpec", "read_heartbeats"]

_log = logging.getLogger(__name__)


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How the server fits a picture for a model, as data: it needs no model code to do it.

    ``side`` is the tower's input in pixels. ``fit`` "pad" puts the picture on a square canvas of its longer
    side filled with ``background`` and resizes that (the original LLaVA-1.5); "crop" resizes the shorter side
    and cuts the centre (CLIP's own); "squash" resizes all of it to a square (SigLIP's own). Resampling is PIL
    bicubic. A tile becomes ``tokens_per_tile`` tokens.

    "anyres" (LLaVA-1.6) and "hd" (LLaVA-1.5-HD, experimental) make several tiles of a picture: first all of
    it squashed to side x side; then the canvas out of ``grid``, (width, height) each, that keeps most of the
    picture's pixels and among those wastes least, with the picture on it as large as fits, its shape kept
    (fractions of a pixel rounded up), in the middle (offset rounded down), black around it; cut row by row.
    """

    side: int
    fit: Literal["pad", "crop", "squash", "anyres", "hd"] = "pad"
    background: tuple[int, int, int] = (122, 116, 104)
    tokens_per_tile: int = 576
    grid: tuple[tuple[int, int], ...] = ()


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker announces; renewed once a second, and expired soon after the worker is gone."""

    worker_id: str
    model: str  # empty: none is loaded, and the fields about the model have no meaning
    image_spec: ImageSpec
    context_length: int
    capacity: int  # sequences it runs at once
    device: str
    precision: str
    is_draining: bool = False
    started_at: float = 0.0  # Unix seconds, for display; no decision depends on it
    command: CommandStatus | None = msgspec.field(name="order", default=None)  # an operator's last one
    stats: dict[str, float] = {}  # of the engine, for display; versions differ in what they count


_decoder = msgspec.msgpack.Decoder(Heartbeat)


def read_heartbeats(announcements: Iterable[bytes]) -> list[Heartbeat]:
    """Decode heartbeats. One that cannot be decoded is logged and skipped, so that it hides no other."""
    read = []
    for packed in announcements:
        try:
            read.append(_decoder.decode(packed))
        except ValueError as error:  # noqa: PERF203 - msgspec's, and that of text which is no UTF-8
            _log.warning("a worker's announcement cannot be read: %s", error)
    return read
