"""The decoder, read from top to bottom: Llama, and with a bias or a window more Qwen2 and Mistral.

It works on packed tokens, [tokens, hidden], whatever sequences they belong to: only attention and the rotary
angles know positions. Attribute names are the checkpoint's, so that weights find their place by name. Modules
define ``__call__`` itself: nothing here uses hooks, and a step makes hundreds of calls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.attention.base import AttentionPlan
from llava_worker.model.config.model_config import TextConfig
from llava_worker.model.layers.activation import gate
from llava_worker.model.layers.embedding import Embedding
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.layers.rotary import Rotary, Rotation
from llava_worker.model.quantization.precision import Precision
from llava_worker.model.tensor_parallel import ALONE, TensorParallel

__all__ = ["LlamaDecoder", "RMSNorm"]


class LlamaDecoder(nn.Module):
    """Embeddings in, final hidden states out. ``config`` is a rank's share; the first rank alone embeds."""

    def __init__(
        self,
        config: TextConfig,
        *,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel = ALONE,
    ) -> None:
        super().__init__()
        if ranks.is_first:
            self.embed_tokens = Embedding(
                config.vocab_size, config.hidden_size, dtype=precision.dtype, device=device
            )
        self.layers = nn.ModuleList(
            [_Layer(config, index, precision, device, ranks) for index in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision, device)
        self.rotary = Rotary(config, precision.kernels, device)

    def embed(self, token_ids: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        return self.embed_tokens(token_ids)

    def __call__(self, x: Tensor, positions: Tensor, attention: AttentionPlan) -> Tensor:
        rotation = self.rotary.at(positions, x.dtype)
        more: Tensor | None = None  # what the layer before adds to x: the next norm does it in the same pass
        for layer in self.layers:
            x, more = layer(x, more, rotation, attention)
        return self.norm(x, more)[1]


class _Layer(nn.Module):
    def __init__(
        self,
        config: TextConfig,
        index: int,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, precision, device)
        self.self_attn = _Attention(config, index, precision, device, ranks)
        self.post_attention_layernorm = RMSNorm(size, eps, precision, device)
        self.mlp = _Mlp(config, precision, device, ranks)

    def __call__(
        self, x: Tensor, more: Tensor | None, rotation: Rotation, attention: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """x + more is what comes in; the sum of the two returned is what goes out."""
        x, normed = self.input_layernorm(x, more)
        x, normed = self.post_attention_layernorm(x, self.self_attn(normed, rotation, attention))
        return x, self.mlp(normed)


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
        self._ranks = ranks
        self._index = index
        self._head_dim = config.head_dim
        self._window = config.windows[index]
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self._kv_heads = config.num_key_value_heads
        qkv = LinearShape(
            config.hidden_size,
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            has_bias=config.has_qkv_bias,
            rows=ranks.portion,
        )
        has_bias = config.attention_bias and ranks.is_first  # added once
        o = LinearShape.plain(q_size, config.hidden_size, has_bias=has_bias, columns=ranks.portion)
        self.qkv_proj = precision.linear(qkv, device, "decoder")
        self.o_proj = precision.linear(o, device, "decoder")

    def __call__(self, x: Tensor, rotation: Rotation, attention: AttentionPlan) -> Tensor:
        qkv = self.qkv_proj(x).view(len(x), -1, self._head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        out = attention.turn_and_attend(
            self._index, qkv, rotation, kv_heads=self._kv_heads, window=self._window
        )
        return self._ranks.sum(self.o_proj(out.flatten(1)))


class _Mlp(nn.Module):
    def __init__(
        self, config: TextConfig, precision: Precision, device: torch.device, ranks: TensorParallel
    ) -> None:
        super().__init__()
        self._ranks = ranks
        size, inner, has_bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        gate_up = LinearShape(size, {"gate_proj": inner, "up_proj": inner}, has_bias, rows=ranks.portion)
        down = LinearShape.plain(inner, size, has_bias=has_bias and ranks.is_first, columns=ranks.portion)
        self.gate_up_proj = precision.linear(gate_up, device, "decoder")
        self.down_proj = precision.linear(down, device, "decoder")
        self._gate = gate(config.hidden_act, precision.kernels)

    def __call__(self, x: Tensor) -> Tensor:
        return self._ranks.sum(self.down_proj(self._gate(self.gate_up_proj(x))))


class RMSNorm(nn.Module):
    """Computed in fp32 and rounded before the weight is applied, as the checkpoints were trained."""

    def __init__(self, size: int, eps: float, precision: Precision, device: torch.device) -> None:
        super().__init__()
        weight = torch.empty(size, dtype=precision.dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._eps = eps
        self._kernels = precision.kernels

    def __call__(self, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + more, or x alone, and its norm."""
        if more is None:
            return x, self._kernels.rms_norm(x, self.weight, self._eps)
        return self._kernels.add_rms_norm(x, more, self.weight, self._eps)
