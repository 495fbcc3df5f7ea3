"""The vision tower for training: CLIP up to and including layer -2, whose output LLaVA uses.

Parameter names are those under `vision_tower.vision_model` in the checkpoint. The last layer of CLIP is
omitted because LLaVA does not use it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.drawing import GRID, PATCH

__all__ = ["VISION", "Clip", "Shape", "initialize_neighbor_attention", "split_heads"]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a transformer."""

    width: int
    layers: int
    heads: int
    inner: int


VISION = Shape(width=192, layers=5, heads=6, inner=512)  # the checkpoint has one more layer
_EPS = 1e-5


def split_heads(
    qkv: Tensor, heads: int
) -> Tensor:  # [rows, tokens, 3 * width] -> [3, rows, heads, tokens, ...]
    rows, tokens, width = qkv.shape
    return qkv.view(rows, tokens, 3, heads, width // heads // 3).permute(2, 0, 3, 1, 4)


class _ClipAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = VISION.width
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # [images, tokens, width]
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        q, k, v = split_heads(F.linear(x, weight, bias), VISION.heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed)
        return out


class _ClipMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(VISION.width, VISION.inner)
        self.fc2 = nn.Linear(VISION.inner, VISION.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))  # CLIP's quick GELU
        return out


class _ClipLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(VISION.width, _EPS)
        self.self_attn = _ClipAttention()
        self.layer_norm2 = nn.LayerNorm(VISION.width, _EPS)
        self.mlp = _ClipMlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _ClipEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(VISION.width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, VISION.width, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Embedding(GRID * GRID + 1, VISION.width)

    def forward(self, pixels: Tensor) -> Tensor:  # [images, 3, side, side]
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        whole = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
        out: Tensor = whole + self.position_embedding.weight
        return out


class _ClipEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ClipLayer() for _ in range(VISION.layers))


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _ClipEmbeddings()
        self.pre_layrnorm = nn.LayerNorm(VISION.width, _EPS)
        self.encoder = _ClipEncoder()

    def forward(self, pixels: Tensor) -> Tensor:  # -> [images, patches, width], layer -2 without CLS
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        out: Tensor = x[:, 1:]
        return out


def initialize_neighbor_attention(clip: Clip) -> None:
    """Initialize the first three layers like convolutions: each of four heads attends to a neighboring patch.

    The first `head` channels encode a patch's position as sines and cosines, and a query rotated by one step
    matches the neighbor's key. All of these weights are trained afterwards.
    """
    head = VISION.width // VISION.heads
    speeds = torch.arange(1, head // 4 + 1) * math.pi / GRID
    angles = torch.arange(GRID)[:, None] * speeds
    line = torch.stack([angles.cos(), angles.sin()], -1).flatten(1)  # [GRID, head / 2]
    places = torch.cat([line.expand(GRID, -1, -1), line[:, None].expand(-1, GRID, -1)], -1)
    with torch.no_grad():
        clip.embeddings.position_embedding.weight[1:, :head] = places.flatten(0, 1)
        clip.embeddings.patch_embedding.weight[:head] = 0
        for number, layer in enumerate(clip.encoder.layers[:3]):
            assert isinstance(layer, _ClipLayer)
            straight = ((-1, 0), (1, 0), (0, -1), (0, 1))
            for place, (x, y) in enumerate(((-1, -1), (1, 1), (1, -1), (-1, 1)) if number % 2 else straight):
                rows = slice(place * head, (place + 1) * head)
                blocks = [_rotation_matrix(speed * step) for step in (x, y) for speed in speeds]
                turn: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
                for weight, start in (
                    (layer.self_attn.q_proj.weight, turn),
                    (layer.self_attn.k_proj.weight, torch.eye(head)),
                ):
                    weight[rows] = 0
                    weight[rows, :head] = 1.8 * start


def _rotation_matrix(angle: Tensor) -> Tensor:
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
