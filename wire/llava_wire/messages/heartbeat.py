"""Heartbeats: information about a worker, its model and the image preprocessing that the model requires."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import msgspec

from llava_wire.messages.load_command import CommandStatus

__all__ = ["KERNEL_SOURCES", "EngineInfo", "Heartbeat", "ImageSpec", "KernelInfo", "read_heartbeats"]

KERNEL_SOURCES = ("shipped", "compiled", "triton", "torch")

_log = logging.getLogger(__name__)


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The image preprocessing for a model, described as data so that the server needs no model code.

    ``side`` is the side length in pixels of the vision tower's square input. ``fit`` is the resize mode:
    "pad" pads the image to a square with ``background`` and resizes it (like the original LLaVA-1.5); "crop"
    resizes the shorter side and crops the center (CLIP's default); "squash" resizes the image to a square
    (SigLIP's default). Images are resampled with PIL's bicubic filter. Each tile is encoded as
    ``tokens_per_tile`` tokens.

    "anyres" (LLaVA-1.6) and "hd" (LLaVA-1.5-HD, experimental) split an image into several tiles. The first
    tile is the whole image, squashed to a square. The other tiles are cut from a canvas. ``grid`` lists the
    possible canvas sizes (width, height). The canvas that preserves the most pixels of the image is selected;
    ties are resolved in favor of the least wasted area. The image is resized to fit the canvas without
    changing its aspect ratio (sizes are rounded up to whole pixels), centered on a black background (offsets
    are rounded down) and cut into tiles row by row. The image is encoded as at most ``max_tokens`` tokens, if
    it is not 0. With low detail, an image is not split. Instead, ``single_tile_fit`` is used. If
    ``splits_several_images`` is false, this also applies if a request contains several images.

    "rgb" requests the whole image as plain RGB pixels, for models whose own image processor runs in the
    worker. The image is resized only if its longer side exceeds ``side``. ``tokens_per_tile`` is then an
    estimate of the tokens of an image.
    """

    side: int
    fit: Literal["pad", "crop", "squash", "anyres", "hd", "rgb"] = "pad"
    background: tuple[int, int, int] = (122, 116, 104)
    tokens_per_tile: int = 576
    grid: tuple[tuple[int, int], ...] = ()
    single_tile_fit: Literal["pad", "crop", "squash"] = "squash"
    splits_several_images: bool = True
    max_tokens: int = 0


class KernelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The kernels that a model uses.

    ``source`` is one of ``KERNEL_SOURCES``: C++ kernels "shipped" in the wheel or "compiled" on the worker's
    machine, "triton", or "torch". Newer releases may add others. ``variant`` is the instruction set of C++
    kernels.
    """

    source: str
    variant: str = ""
    fallback_reason: str = ""  # why torch kernels replace faster ones; empty if they do not


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that runs a model.

    ``name`` is "native", "transformers" or "echo". ``batching`` is how it computes concurrent sequences:
    "continuous" (prompts and sequences of any length in one pass), "padded" (one pass for all sequences, and
    a separate one for each prompt) or "single" (one pass for each sequence). Newer releases may add others.
    """

    name: str
    batching: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's heartbeat, sent once per second. In Redis, it expires with the worker's lease."""

    worker_id: str
    model: str  # empty if no model is loaded; the other model fields are then unused
    image_spec: ImageSpec
    context_length: int
    capacity: int  # maximum number of concurrent sequences
    device: str
    precision: str
    # Digest of everything that shapes the output: weights, precision, KV cache dtype, template. An output is
    # continued only by workers with the same digest. Empty if unknown.
    model_digest: str = ""
    is_draining: bool = False
    started_at: float = 0.0  # Unix seconds, for display only
    command: CommandStatus | None = msgspec.field(name="order", default=None)  # status of the last command
    kernels: KernelInfo | None = None  # None without a model, for the echo model and in older releases
    engine: EngineInfo | None = None  # None without a model and in older releases
    num_shards: int = 1  # number of the queue's shards in the worker's settings
    # Digest of the servers of all shards in their order. Empty with one server, None in older releases.
    shard_servers: str | None = None
    # Maximum number of bytes of a text that one token represents. 0 if it is unlimited or unknown.
    max_token_bytes: int = 0
    # Digest of the location of the separate image store. Empty without one, None in older releases.
    image_store: str | None = None
    stats: dict[str, float] = {}  # engine statistics for display; the names depend on the worker's version


_decoder = msgspec.msgpack.Decoder(Heartbeat)


def read_heartbeats(payloads: Iterable[bytes]) -> list[Heartbeat]:
    """Decode heartbeats. Log and skip those that cannot be decoded."""
    read = []
    for payload in payloads:
        try:
            read.append(_decoder.decode(payload))
        except ValueError as error:  # noqa: PERF203 - msgspec error or invalid UTF-8
            _log.warning("skipping a heartbeat that cannot be decoded: %s", error)
    return read
