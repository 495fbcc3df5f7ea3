"""Properties of a loaded model that the worker announces and builds prompts with."""

from __future__ import annotations

from dataclasses import dataclass

from llava_worker.model.config.image_grid import Fit, Resolution

__all__ = ["ModelInfo"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Properties of a loaded model, needed to build prompts and preprocess images.

    ``context_length`` is the engine's, which a small KV cache makes less than the model's.
    """

    name: str  # the folder's
    image_side: int  # pixels
    fit: Fit
    background: tuple[int, int, int]
    tokens_per_tile: int
    image_token_id: int
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    precision: str
    device: str
    grid: tuple[Resolution, ...] = ()  # (width, height) in pixels; fits "anyres" and "hd" have one
    has_image_marks: bool = False  # the prompt has <im_start> and <im_end> around a picture
    weights_s: float = 0.0  # how long loading them took
    warmup_s: float = 0.0  # and the first steps
