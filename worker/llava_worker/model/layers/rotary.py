"""Rotary position embedding (RoPE) with linear, Llama 3 and YaRN scaling.

If the decoder rotates only some dimensions of each head, these are the first ones of both halves. The others
have the angle 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.config.text_config import RopeConfig, TextConfig
from llava_worker.model.kernels.interface import Kernels, LayerCache

__all__ = ["Rotation", "RotaryEmbedding"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """The cosines and sines of the RoPE angles for one forward pass, shared by all layers."""

    cos: Tensor  # [tokens, 1, head_dim / 2]
    sin: Tensor  # [tokens, 1, head_dim / 2]
    kernels: Kernels

    def apply(self, x: Tensor) -> Tensor:  # [tokens, heads, head_dim]
        """Rotate each pair (x[i], x[i + head_dim / 2]). Llama uses these pairs."""
        return self.kernels.rope(x, self.cos, self.sin)

    def rope_and_cache(self, qkv: Tensor, cache: LayerCache, slots: Tensor) -> Tensor:
        """Call `Kernels.rope_and_cache` with these angles."""
        return self.kernels.rope_and_cache(qkv, self.cos, self.sin, cache, slots)

    def of_tokens(self, tokens: slice) -> Rotation:
        """Return the angles of some of the tokens."""
        return Rotation(self.cos[tokens], self.sin[tokens], self.kernels)


class RotaryEmbedding:
    """The RoPE frequencies of a decoder. Angles are computed in fp32 for all model dtypes."""

    def __init__(self, config: TextConfig, kernels: Kernels, device: torch.device) -> None:
        rope = config.rope
        exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
        frequencies = 1.0 / rope.rope_theta**exponents  # [rotary_dim / 2]
        if rope.rope_type == "linear":
            frequencies = frequencies / rope.factor
        elif rope.rope_type == "llama3":
            frequencies = _llama3(frequencies, rope)
        elif rope.rope_type == "yarn":
            frequencies = _yarn(frequencies, rope, config.rotary_dim)
        scale = _yarn_scale(rope) if rope.rope_type == "yarn" else 1.0
        fixed = torch.zeros((config.head_dim - config.rotary_dim) // 2)
        self._kernels = kernels
        self._frequencies = torch.cat([frequencies, fixed]).to(device)  # [head_dim / 2]
        self._scale = torch.cat([torch.full_like(frequencies, scale), fixed + 1]).to(device)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> Rotation:  # positions [tokens]
        angles = (positions[:, None].float() * self._frequencies)[:, None, :]
        cos, sin = (angles.cos() * self._scale).to(dtype), (angles.sin() * self._scale).to(dtype)
        return Rotation(cos, sin, self._kernels)


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Apply Llama 3.1 scaling, which divides low frequencies by the factor and keeps high ones.

    In between, it interpolates linearly in the frequency.
    """
    # The number of full rotations over the context length in training.
    rotations = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    ramp = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    unscaled = ramp.clamp(0, 1)
    return frequencies * (unscaled + (1 - unscaled) / rope.factor)


def _yarn(frequencies: Tensor, rope: RopeConfig, rotary_dim: int) -> Tensor:
    """Apply YaRN scaling (arXiv 2309.00071), which resembles `_llama3`, but interpolates in the dimension."""

    def dimension(num_rotations: float) -> float:
        length = rope.original_max_position_embeddings
        return rotary_dim * math.log(length / (num_rotations * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low or 0.001
    unscaled = 1 - ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies * (unscaled + (1 - unscaled) / rope.factor)


def _yarn_scale(rope: RopeConfig) -> float:
    """Return YaRN's attention factor, by which cosines and sines are multiplied."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(factor: float) -> float:
        return 0.1 * factor * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
