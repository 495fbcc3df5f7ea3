"""A layer of Phi-1, Phi-1.5 or Phi-2: attention and the MLP read the same norm, and their outputs are added.

    x  ->  x + attention(norm(x)) + mlp(norm(x))

RoPE rotates only some of the dimensions of each head. The kernels rotate all of them, as pairs
(i, i + head_dim / 2). The layer therefore moves the rotated pairs of the checkpoint to the first dimensions
of both halves. For all other pairs, `RotaryEmbedding` contains the angle 0. Attention does not depend on the
order of the dimensions, because it is the same for queries and keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.attention.base import AttentionPlan
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.layers.activation import activation
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.norm import LayerNorm
from llava_worker.model.quantization.precision import Precision
from llava_worker.model.tensor_parallel import TensorParallel

__all__ = ["PhiLayer"]


class PhiLayer(nn.Module):
    """One rank's shard of a layer. Only the first rank adds the biases of the outputs."""

    def __init__(
        self,
        config: TextConfig,
        index: int,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel,
    ) -> None:
        super().__init__()
        self._ranks = ranks
        self.input_layernorm = LayerNorm(config, precision, device)
        self.self_attn = _Attention(config, index, precision, device, ranks)
        self.mlp = _Mlp(config, precision, device, ranks)

    def __call__(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, attention: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the outputs, and the residual, which is added in the next norm."""
        normed, residual = self.input_layernorm(x, residual)
        out = self.self_attn(normed, rotation, attention) + self.mlp(normed)
        return self._ranks.all_reduce(out), residual


class _Attention(nn.Module):
    def __init__(
        self,
        config: TextConfig,
        index: int,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel,
    ) -> None:
        super().__init__()
        self._index = index
        self._head_dim = config.head_dim
        self._kv_heads = config.num_key_value_heads
        self._order = _dimension_order(config.head_dim, config.rotary_dim).to(device)
        q_size, kv_size = (heads * config.head_dim for heads in (config.num_attention_heads, self._kv_heads))
        qkv = LinearShape(
            config.hidden_size,
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            has_bias=True,
            rows=ranks.shard,
        )
        dense = LinearShape.plain(q_size, config.hidden_size, has_bias=ranks.is_first, columns=ranks.shard)
        self.qkv_proj = precision.linear(qkv, device, "decoder")
        self.dense = precision.linear(dense, device, "decoder")

    def __call__(self, x: Tensor, rotation: Rotation, attention: AttentionPlan) -> Tensor:
        """Return the attention output [tokens, hidden] for x [tokens, hidden]."""
        qkv = self.qkv_proj(x)
        qkv = qkv.view(len(qkv), -1, self._head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        rotated = qkv[:, : -self._kv_heads]  # queries and keys
        rotated.copy_(rotated.index_select(-1, self._order))
        out = attention.rope_and_attend(self._index, qkv, rotation, kv_heads=self._kv_heads)
        return self.dense(out.flatten(1))


class _Mlp(nn.Module):
    def __init__(
        self, config: TextConfig, precision: Precision, device: torch.device, ranks: TensorParallel
    ) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        fc1 = LinearShape(size, {"": inner}, has_bias=True, rows=ranks.shard)
        fc2 = LinearShape.plain(inner, size, has_bias=ranks.is_first, columns=ranks.shard)
        self.fc1 = precision.linear(fc1, device, "decoder")
        self.fc2 = precision.linear(fc2, device, "down_proj")
        self._act = activation(config.hidden_act, precision.kernels)

    def __call__(self, x: Tensor) -> Tensor:  # [tokens, hidden] -> [tokens, hidden]
        return self.fc2(self._act(self.fc1(x)))


def _dimension_order(head_dim: int, rotary_dim: int) -> Tensor:
    """Return the dimension of the checkpoint for each dimension of a head, [head_dim].

    The checkpoint rotates the pairs (i, i + rotary_dim / 2) for i < rotary_dim / 2.
    """
    first, second = torch.arange(rotary_dim).chunk(2)
    first_fixed, second_fixed = torch.arange(rotary_dim, head_dim).tensor_split(2)
    return torch.cat([first, first_fixed, second, second_fixed])
