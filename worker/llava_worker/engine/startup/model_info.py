"""Properties of a loaded model. The worker announces them and uses them to build prompts."""

from __future__ import annotations

from dataclasses import dataclass

from llava_worker.model.config.image_grid import ImageLayout
from llava_worker.model.kernels.interface import KernelOrigin
from llava_worker.model.loading.unstored_weights import UnstoredWeights

__all__ = ["ModelInfo"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The properties of a loaded model that are needed to build prompts and preprocess images.

    ``context_length`` is the engine's limit, which is lower than the model's limit if the KV cache is small.
    """

    name: str  # name of the checkpoint folder
    layout: ImageLayout
    background: tuple[int, int, int]
    image_token_id: int
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    precision: str
    device: str
    kernels: KernelOrigin
    has_image_marks: bool = False  # images in the prompt are enclosed in <im_start> and <im_end>
    weights_digest: str = ""  # see `digest_weights`
    weights_s: float = 0.0  # time taken to load the weights, in seconds
    warmup_s: float = 0.0  # time taken by the warm-up, in seconds
    unstored_weights: UnstoredWeights | None = None  # to be stored in the weights cache

    @property
    def image_side(self) -> int:
        """The side length of a tile in pixels."""
        return self.layout.side

    @property
    def tokens_per_tile(self) -> int:
        return self.layout.tokens_per_tile
