"""Properties of a loaded model, which the worker announces and uses to build prompts."""

from __future__ import annotations

from dataclasses import dataclass

from llava_worker.model.config.image_grid import Fit, Resolution

__all__ = ["ModelInfo"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Properties of a loaded model, needed to build prompts and preprocess images.

    ``context_length`` is the engine's limit. If the KV cache is small, it is lower than the model's limit.
    """

    name: str  # name of the checkpoint folder
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
    grid: tuple[Resolution, ...] = ()  # (width, height) in pixels; set only if fit is "anyres" or "hd"
    has_image_marks: bool = False  # images in the prompt are enclosed in <im_start> and <im_end>
    weights_s: float = 0.0  # duration of loading the weights, in seconds
    warmup_s: float = 0.0  # duration of the warm-up, in seconds
