"""The language model: a Llama decoder that also supports sliding windows and the biases of Qwen2.

The input, [tokens, hidden], is packed: it contains the tokens of all sequences without padding. Only
attention and RoPE use the positions of the tokens. Attributes have the same names as the tensors in
checkpoints, so that weights can be loaded by name. Modules define ``__call__`` instead of ``forward`` to
avoid the overhead of hooks, which are not used. Over hundreds of calls per step, this overhead would add up.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from llava_worker.model.attention.base import AttentionPlan
from llava_worker.model.config.model_config import TextConfig
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.kernels.w8a8 import QuantizedRows
from llava_worker.model.layers.activation import gated_activation
from llava_worker.model.layers.embedding import Embedding
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.layers.rotary import RotaryEmbedding, Rotation
from llava_worker.model.native_layers import LayerWeights, NativeLayers
from llava_worker.model.quantization.precision import Precision
from llava_worker.model.tensor_parallel import SINGLE_RANK, TensorParallel

__all__ = ["LlamaDecoder"]

_Normed = Tensor | QuantizedRows  # the output of a norm in a layer, [tokens, hidden]


class LlamaDecoder(nn.Module):
    """A decoder, or one rank's shard of a decoder. It maps embeddings to final hidden states.

    ``config`` describes the shard. Only the first rank embeds tokens.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel = SINGLE_RANK,
    ) -> None:
        super().__init__()
        if ranks.is_first:
            self.embed_tokens = Embedding(
                config.vocab_size, config.hidden_size, dtype=precision.dtype, device=device
            )
        self.layers = nn.ModuleList(
            [_Layer(config, index, precision, device, ranks) for index in range(config.num_hidden_layers)]
        )
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps, precision, device)
        self._config = config
        self._kernels = precision.kernels
        self._has_ranks = ranks.size > 1
        self.rotary = RotaryEmbedding(config, precision.kernels, device)

    def embed(self, token_ids: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        return self.embed_tokens(token_ids)

    def __call__(self, x: Tensor, positions: Tensor, attention: AttentionPlan) -> Tensor:
        """Return the final hidden states [tokens, hidden] for x [tokens, hidden] and positions [tokens]."""
        rotation = self.rotary(positions, x.dtype)
        rows = attention.decode_rows
        if rows is not None and self._native_layers is not None:
            hidden = self._native_layers.compute(x, rotation, rows)
            if hidden is not None:
                return self.norm(hidden, None)[0]
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, rotation, attention)
        return self.norm(x, residual)[0]

    @cached_property
    def _native_layers(self) -> NativeLayers | None:
        """The layers for steps with few tokens, if C++ kernels support them."""
        config, kernels = self._config, self._kernels
        if self._has_ranks or config.hidden_act != "silu" or not isinstance(kernels, NativeKernels):
            return None
        weights = [layer.weights for layer in self.layers if isinstance(layer, _Layer)]
        return NativeLayers.create(weights, config.rms_norm_eps, config.head_dim, kernels)


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
        self.input_layernorm = _RMSNorm(size, eps, precision, device)
        self.self_attn = _Attention(config, index, precision, device, ranks)
        self.post_attention_layernorm = _RMSNorm(size, eps, precision, device)
        self.mlp = _Mlp(config, precision, device, ranks)

    def __call__(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, attention: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Return the output of the MLP and the residual, which are added in the next norm."""
        normed, residual = self.input_layernorm.for_linear(x, residual)
        x = self.self_attn(normed, rotation, attention)
        normed, residual = self.post_attention_layernorm.for_linear(x, residual)
        return self.mlp(normed), residual

    @property
    def weights(self) -> LayerWeights:
        return LayerWeights(
            self.input_layernorm.weight,
            self.post_attention_layernorm.weight,
            qkv=self.self_attn.qkv_proj,
            o=self.self_attn.o_proj,
            gate_up=self.mlp.gate_up_proj,
            down=self.mlp.down_proj,
            window=self.self_attn.window or 0,
        )


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
        self.window = config.sliding_windows[index]
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self._kv_heads = config.num_key_value_heads
        qkv = LinearShape(
            config.hidden_size,
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            has_bias=config.has_qkv_bias,
            rows=ranks.shard,
        )
        has_bias = (
            config.attention_bias and ranks.is_first
        )  # otherwise all-reduce would add the bias once per rank
        o = LinearShape.plain(q_size, config.hidden_size, has_bias=has_bias, columns=ranks.shard)
        self.qkv_proj = precision.linear(qkv, device, "decoder")
        self.o_proj = precision.linear(o, device, "decoder")

    def __call__(self, x: _Normed, rotation: Rotation, attention: AttentionPlan) -> Tensor:
        """Return the attention output [tokens, hidden] for x [tokens, hidden]."""
        qkv = self.qkv_proj(x)
        qkv = qkv.view(len(qkv), -1, self._head_dim)  # [tokens, heads + 2 * kv_heads, head_dim]
        out = attention.rope_and_attend(  # [tokens, heads, head_dim]
            self._index, qkv, rotation, kv_heads=self._kv_heads, window=self.window
        )
        return self._ranks.all_reduce(self.o_proj(out.flatten(1)))


class _Mlp(nn.Module):
    def __init__(
        self, config: TextConfig, precision: Precision, device: torch.device, ranks: TensorParallel
    ) -> None:
        super().__init__()
        self._ranks = ranks
        size, inner, has_bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        gate_up = LinearShape(size, {"gate_proj": inner, "up_proj": inner}, has_bias, rows=ranks.shard)
        down = LinearShape.plain(inner, size, has_bias=has_bias and ranks.is_first, columns=ranks.shard)
        self.gate_up_proj = precision.linear(gate_up, device, "decoder")
        self.down_proj = precision.linear(down, device, "down_proj")
        self._act = gated_activation(config.hidden_act, precision.kernels, precision.w8a8)

    def __call__(self, x: _Normed) -> Tensor:  # [tokens, hidden] -> [tokens, hidden]
        gate_up = self.gate_up_proj(x)  # [tokens, 2 * intermediate]
        return self._ranks.all_reduce(self.down_proj(self._act(gate_up)))


class _RMSNorm(nn.Module):
    """RMSNorm, computed in fp32 and, as in training, rounded before being multiplied by the weight."""

    def __init__(self, size: int, eps: float, precision: Precision, device: torch.device) -> None:
        super().__init__()
        weight = torch.empty(size, dtype=precision.dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._eps = eps
        self._kernels = precision.kernels
        self._w8a8 = precision.w8a8

    def for_linear(self, x: Tensor, residual: Tensor | None) -> tuple[_Normed, Tensor]:
        """Return the same as a call, but quantize the norm if this is the input format of linear layers."""
        if self._w8a8 is None:
            return self(x, residual)
        return self._kernels.rms_norm_w8a8(x, residual, self.weight, self._eps, self._w8a8)

    def __call__(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and x + residual itself, both [tokens, hidden]."""
        if residual is None:
            return self._kernels.rms_norm(x, self.weight, self._eps), x
        return self._kernels.add_rms_norm(x, residual, self.weight, self._eps)
