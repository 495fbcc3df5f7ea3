"""The language model: a decoder with the layers of Llama or Phi (see `phi_layer`).

The layers of Llama also support the sliding windows of Mistral, the biases of Qwen2 and the fused tensors of
Phi-3.

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
from llava_worker.model.layers.activation import gated_activation
from llava_worker.model.layers.embedding import Embedding
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.layers.rotary import RotaryEmbedding, Rotation
from llava_worker.model.native_layers import LayerWeights, NativeLayers
from llava_worker.model.norm import LayerNorm, Normed, RMSNorm
from llava_worker.model.phi_layer import PhiLayer
from llava_worker.model.quantization.precision import Precision
from llava_worker.model.tensor_parallel import SINGLE_RANK, TensorParallel

__all__ = ["Decoder"]


class Decoder(nn.Module):
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
        layer, norm = (PhiLayer, LayerNorm) if config.model_type == "phi" else (_LlamaLayer, RMSNorm)
        self.layers = nn.ModuleList(
            [layer(config, index, precision, device, ranks) for index in range(config.num_hidden_layers)]
        )
        self.norm = norm(config, precision, device)
        self._config = config
        self._kernels = precision.kernels
        self._has_ranks = ranks.size > 1
        self.rotary = RotaryEmbedding(config, precision.kernels, device)

    def embed(self, token_ids: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        return self.embed_tokens(token_ids)

    def __call__(self, x: Tensor, positions: Tensor, attention: AttentionPlan) -> Tensor:
        """Return the final hidden states [tokens, hidden] for x [tokens, hidden] and positions [tokens]."""
        rotation = self.rotary(positions, x.dtype)
        rows = attention.step_rows
        if rows is not None and self._native_layers is not None:
            hidden = self._native_layers.compute(x, rotation, rows)
            if hidden is not None:
                return self.norm(hidden, None)[0]
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, rotation, attention)
        return self.norm(x, residual)[0]

    def use_parameters(self) -> None:
        """Called after the data of the parameters has been replaced."""
        self.__dict__.pop("_native_layers", None)  # it is created again when it is next used

    @cached_property
    def _native_layers(self) -> NativeLayers | None:
        """The layers as one call, if C++ kernels support them. They do not support Phi."""
        config, kernels = self._config, self._kernels
        if self._has_ranks or config.hidden_act != "silu" or not isinstance(kernels, NativeKernels):
            return None
        weights = [layer.weights for layer in self.layers if isinstance(layer, _LlamaLayer)]
        return NativeLayers.create(weights, config.rms_norm_eps, config.head_dim, kernels)


class _LlamaLayer(nn.Module):
    def __init__(
        self,
        config: TextConfig,
        index: int,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config, precision, device)
        self.self_attn = _Attention(config, index, precision, device, ranks)
        self.post_attention_layernorm = RMSNorm(config, precision, device)
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
            _parts(config, "qkv_proj", {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}),
            has_bias=config.has_qkv_bias,
            rows=ranks.shard,
        )
        has_bias = (
            config.attention_bias and ranks.is_first
        )  # otherwise all-reduce would add the bias once per rank
        o = LinearShape.plain(q_size, config.hidden_size, has_bias=has_bias, columns=ranks.shard)
        self.qkv_proj = precision.linear(qkv, device, "decoder")
        self.o_proj = precision.linear(o, device, "decoder")

    def __call__(self, x: Normed, rotation: Rotation, attention: AttentionPlan) -> Tensor:
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
        parts = _parts(config, "gate_up_proj", {"gate_proj": inner, "up_proj": inner})
        gate_up = LinearShape(size, parts, has_bias, rows=ranks.shard)
        down = LinearShape.plain(inner, size, has_bias=has_bias and ranks.is_first, columns=ranks.shard)
        self.gate_up_proj = precision.linear(gate_up, device, "decoder")
        self.down_proj = precision.linear(down, device, "down_proj")
        self._act = gated_activation(config.hidden_act, precision.kernels, precision.w8a8)

    def __call__(self, x: Normed) -> Tensor:  # [tokens, hidden] -> [tokens, hidden]
        gate_up = self.gate_up_proj(x)  # [tokens, 2 * intermediate]
        return self._ranks.all_reduce(self.down_proj(self._act(gate_up)))


def _parts(config: TextConfig, fused: str, parts: dict[str, int]) -> dict[str, int]:
    """Return the names and widths of the tensors in the checkpoint for the projection named ``fused``."""
    return {fused: sum(parts.values())} if config.has_fused_tensors else parts
