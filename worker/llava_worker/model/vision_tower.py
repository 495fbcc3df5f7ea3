"""The vision tower (CLIP or SigLIP), which maps images to the hidden states that the projector reads.

Unlike CLIP, SigLIP uses a bias in the patch embedding, but neither a class token nor a norm before the first
layer. Layers are created only up to the last one whose output is used. For LLaVA-1.5, this is the
second-to-last layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.config.model_config import VisionConfig
from llava_worker.model.layers.activation import activation
from llava_worker.model.layers.embedding import Embedding
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.quantization.precision import Precision

__all__ = ["VisionTower"]


class VisionTower(nn.Module):
    """A vision tower. ``feature_layers`` are the indices of the hidden states that it returns.

    Index 0 is the input of the first layer.
    """

    def __init__(
        self, config: VisionConfig, feature_layers: list[int], *, precision: Precision, device: torch.device
    ) -> None:
        super().__init__()
        self._feature_layers = feature_layers
        self.embeddings = _Embeddings(config, precision.dtype, device)
        self.pre_layrnorm = (  # sic, this is the spelling in checkpoints
            _layer_norm(config, precision, device) if config.has_class_token else None
        )
        self.encoder = _Encoder(config, max(feature_layers), precision, device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels [tiles, 3, side, side].

        Returns features [tiles, positions, hidden * feature layers]. If the tower has a class token, it is at
        the first position. The patches follow, row by row.
        """
        x = self.embeddings(pixels)  # [tiles, positions, hidden]
        if self.pre_layrnorm is not None:
            x = self.pre_layrnorm(x)
        states = self.encoder(x)
        return torch.cat([states[index] for index in self._feature_layers], dim=-1)


class _Encoder(nn.Module):
    def __init__(
        self, config: VisionConfig, num_layers: int, precision: Precision, device: torch.device
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config, precision, device) for _ in range(num_layers)])

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return the input of the first layer and the outputs of all layers, [tiles, positions, hidden]."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        has_class_token = config.has_class_token
        token = torch.empty(size, dtype=dtype, device=device) if has_class_token else None
        self.class_embedding = None if token is None else nn.Parameter(token, requires_grad=False)
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            size,
            patch,
            stride=patch,
            bias=not has_class_token,
            dtype=dtype,
            device=device,
        )
        self.position_embedding = Embedding(config.num_positions, size, dtype=dtype, device=device)

    def __call__(self, pixels: Tensor) -> Tensor:  # [tiles, 3, side, side] -> [tiles, positions, hidden]
        x: Tensor = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [tiles, patches, hidden]
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), x], dim=1)
        return x + self.position_embedding.weight


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.layer_norm1 = _layer_norm(config, precision, device)
        self.self_attn = _Attention(config, precision, device)
        self.layer_norm2 = _layer_norm(config, precision, device)
        self.mlp = _Mlp(config, precision, device)

    def __call__(self, x: Tensor) -> Tensor:  # [tiles, positions, hidden]
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, config: VisionConfig, precision: Precision, device: torch.device) -> None:
        super().__init__()
        size = config.hidden_size
        self._head_dim = size // config.num_attention_heads
        self._kernels = precision.kernels
        qkv = LinearShape(size, {"q_proj": size, "k_proj": size, "v_proj": size}, has_bias=True)
        self.qkv_proj = precision.linear(qkv, device, "vision_tower")
        self.out_proj = precision.linear(LinearShape.plain(size, size, has_bias=True), device, "vision_tower")

    def __call__(self, x: Tensor) -> Tensor:  # [tiles, positions, hidden]
        parts = self.qkv_proj(x).chunk(3, dim=-1)
        q, k, v = (part.view(*x.shape[:2], -1, self._head_dim) for part in parts)  # [..., heads, head_dim]
        return self.out_proj(self._kernels.vision_attention(q, k, v).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: VisionConfig, precision: Precision, device: torch.device) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.fc1 = precision.linear(LinearShape.plain(size, inner, has_bias=True), device, "vision_tower")
        self.fc2 = precision.linear(LinearShape.plain(inner, size, has_bias=True), device, "vision_tower")
        self._activation = activation(config.hidden_act, precision.kernels)

    def __call__(self, x: Tensor) -> Tensor:  # [tiles, positions, hidden]
        return self.fc2(self._activation(self.fc1(x)))


def _layer_norm(config: VisionConfig, precision: Precision, device: torch.device) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=precision.dtype, device=device)
