"""Configuration of the decoder, which is Llama, Mistral, Qwen2, Phi or Phi-3, depending on ``model_type``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llava_worker.model.config.bounded_numbers import (
    MAX_TOKENS,
    Factor,
    HeadCount,
    LayerCount,
    LayerIndex,
    Length,
    TokenId,
    VocabSize,
    Width,
)

__all__ = ["Activation", "ConfigPart", "RopeConfig", "TextConfig"]

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu"]

# The defaults of transformers, which omits default values when it saves a configuration.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "phi": {
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "hidden_act": "gelu_new",
        "partial_rotary_factor": 0.5,
    },
    "phi3": {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 32000,
    },
}
_WITHOUT_WINDOW = ("llama", "phi")


class ConfigPart(BaseModel):
    """Base class for configurations. Unknown keys, such as training options, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class RopeConfig(ConfigPart):
    """Configuration of RoPE and of its scaling for longer contexts.

    The type "linear" divides all frequencies by ``factor``. "llama3" and "yarn" divide only low frequencies.
    "dynamic" is a no-op, because it applies only beyond ``max_position_embeddings``, the maximum context
    length.
    """

    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    rope_theta: Annotated[Factor, Field(gt=1)] = 10000.0
    factor: Factor = 1.0
    original_max_position_embeddings: Length = 2048  # default: max_position_embeddings of the decoder
    low_freq_factor: Factor = 1.0
    high_freq_factor: Factor = 4.0
    beta_fast: Factor = 32.0
    beta_slow: Factor = 1.0
    attention_factor: Factor | None = None
    mscale: Factor | None = None
    mscale_all_dim: Factor | None = None
    truncate: bool = True
    partial_rotary_factor: Annotated[Factor, Field(le=1)] = 1.0


class TextConfig(ConfigPart):
    """Configuration of the decoder.

    ``rms_norm_eps`` belongs to the norms of all types except Phi, and ``layer_norm_eps`` to those of Phi.
    """

    model_type: Literal["llama", "mistral", "qwen2", "phi", "phi3"] = "llama"
    vocab_size: VocabSize = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 11008
    num_hidden_layers: LayerCount = 32
    num_attention_heads: HeadCount = 32
    num_key_value_heads: HeadCount = 32
    head_dim: Annotated[Width, Field(le=1 << 12, multiple_of=2)] = 128
    hidden_act: Activation = "silu"
    max_position_embeddings: Length = 2048
    rms_norm_eps: Factor = 1e-6
    layer_norm_eps: Factor = 1e-5
    attention_bias: bool = False  # only for Llama; applies to all four projections
    mlp_bias: bool = False
    qk_layernorm: Literal[False] = False
    tie_word_embeddings: bool = False
    eos_token_id: TokenId | Annotated[tuple[TokenId, ...], Field(max_length=MAX_TOKENS)] = 2
    sliding_window: Length | None = None
    use_sliding_window: bool = False
    max_window_layers: LayerIndex = 28
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    rope: RopeConfig = Field(default_factory=RopeConfig, alias="rope_parameters")

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        """Add the defaults for the architecture, and derive missing head counts and head sizes."""
        if not isinstance(values, dict):
            return values
        # For sliding_window, null means that there is no window. For all other fields, it means the default.
        has_no_window = "sliding_window" in values and values["sliding_window"] is None
        values = {key: value for key, value in values.items() if value is not None}
        kind = str(values.get("model_type", "llama"))
        values = _DEFAULTS.get(kind, {}) | values
        if has_no_window or (kind == "qwen2" and not values.get("use_sliding_window")):
            values["sliding_window"] = None
        if kind in _WITHOUT_WINDOW:
            values["sliding_window"] = None
        if kind != "llama":
            values |= {"attention_bias": False, "mlp_bias": False}
        num_heads, hidden_size = values.get("num_attention_heads", 32), values.get("hidden_size", 4096)
        values.setdefault("num_key_value_heads", num_heads)
        if isinstance(num_heads, int) and isinstance(hidden_size, int) and num_heads:
            values.setdefault("head_dim", hidden_size // num_heads)
        values["rope_parameters"] = _rope(values)
        return values

    @model_validator(mode="after")
    def _check(self) -> TextConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.model_type != "phi" and self.rope.partial_rotary_factor != 1:
            raise ValueError(
                f"partial_rotary_factor is {self.rope.partial_rotary_factor}; the supported value for a "
                f"decoder of model_type {self.model_type} is 1."
            )
        if self.rotary_dim % 2 or not self.rotary_dim:
            raise ValueError(
                f"partial_rotary_factor ({self.rope.partial_rotary_factor}) and a head size of "
                f"{self.head_dim} result in {self.rotary_dim} rotated dimensions; the number must be even "
                "and positive."
            )
        if self.layer_types is not None and len(self.layer_types) < self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries; the decoder has {self.num_hidden_layers} "
                "layers."
            )
        return self

    def shard(self, num: int) -> TextConfig:
        """Return the configuration of one of ``num`` ranks, with its share of heads and intermediate size.

        Raises ValueError unless the head counts and the intermediate size are multiples of ``num``, or if the
        checkpoint contains fused tensors.
        """
        if self.has_fused_tensors and num > 1:
            raise ValueError(
                f"tensor_parallel is {num}; the supported value for a decoder of model_type "
                f"{self.model_type}, whose checkpoint contains fused projections, is 1."
            )
        sizes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        indivisible = ", ".join(
            f"{name} {getattr(self, name)}" for name in sizes if getattr(self, name) % num
        )
        if indivisible:
            supported = ", ".join(map(str, self.possible_ranks))
            raise ValueError(
                f"The model cannot be sharded across {num} ranks: {num} does not divide {indivisible}. "
                f"Supported values of tensor_parallel: {supported}."
            )
        return self.model_copy(update={name: getattr(self, name) // num for name in sizes})

    @property
    def possible_ranks(self) -> list[int]:
        """All numbers of ranks across which the decoder can be sharded, in ascending order."""
        common = math.gcd(self.num_attention_heads, self.num_key_value_heads, self.intermediate_size)
        return [num for num in range(1, common + 1) if common % num == 0]

    @property
    def rotary_dim(self) -> int:
        """The number of dimensions of a head that RoPE rotates."""
        return int(self.head_dim * self.rope.partial_rotary_factor)

    @property
    def has_fused_tensors(self) -> bool:
        """Whether the checkpoint contains qkv_proj and gate_up_proj instead of the separate projections."""
        return self.model_type == "phi3"

    @property
    def has_lm_head_bias(self) -> bool:
        return self.model_type == "phi"

    @property
    def has_qkv_bias(self) -> bool:
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def sliding_windows(self) -> list[int | None]:
        """The attention window of each layer in tokens, including the current token. None means unlimited."""
        return [self.sliding_window if self._is_sliding(i) else None for i in range(self.num_hidden_layers)]

    def _is_sliding(self, layer: int) -> bool:
        if self.model_type != "qwen2":
            return True
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return layer >= self.max_window_layers


def _rope(values: dict[str, Any]) -> Any:
    """Return the RoPE parameters, which are in ``rope_parameters`` or ``rope_scaling``.

    ``rope_theta`` and ``partial_rotary_factor`` can be specified there or at the top level.
    """
    rope = values.get("rope_parameters", values.get("rope_scaling", {}))
    if not isinstance(rope, dict):
        return rope
    rope = {key: value for key, value in rope.items() if value is not None}
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", values.get("rope_theta", 10000.0))
    rope.setdefault("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    rope.setdefault("original_max_position_embeddings", values.get("max_position_embeddings", 2048))
    return rope
