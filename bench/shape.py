"""The shape of a LLaVA model: its configuration, tensors, and bytes and operations per forward pass.

The numbers of bytes and operations are theoretical, so they apply to every implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["LLAVA_1_5_7B", "LLAVA_1_5_SMALL", "MINI", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions of LLaVA-1.5: a Llama decoder, a CLIP tower and a projector with two linear layers.

    ``vision_layers`` includes the tower's last layer, which is part of the checkpoint but never computed. The
    projector uses the output of the second-to-last layer, without the CLS token.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    context: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    image_side: int  # pixels
    patch: int  # pixels

    @property
    def image_tokens(self) -> int:
        """Return the number of tokens per image."""
        return (self.image_side // self.patch) ** 2

    @property
    def image_token_id(self) -> int:
        return self.vocabulary - 64  # 32000 for llava-hf's padded vocabulary of 32064

    def config(self, dtype: str) -> dict[str, Any]:
        """Return the content of ``config.json`` in the llava-hf format."""
        text = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": dtype,
        }
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": self.vision_hidden,
            "intermediate_size": self.vision_intermediate,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_side,
            "patch_size": self.patch,
            "projection_dim": self.vision_hidden,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-05,
            "dtype": dtype,
        }
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "dtype": dtype,
            "torch_dtype": dtype,
            "image_seq_length": self.image_tokens,
            "image_token_index": self.image_token_id,
            "pad_token_id": self.image_token_id + 1,
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "tie_word_embeddings": False,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "text_config": text,
            "vision_config": vision,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, as in the published llava-hf checkpoints."""
        yield from self._projector()
        yield from self._tower()
        yield from self._decoder()

    @property
    def decoder_parameters(self) -> int:
        """Return the number of parameters that are used to decode a token: decoder layers and LM head."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden

    def mean_bits(
        self, layers: float, *, down_proj: float | None = None, lm_head: float | None = None
    ) -> float:
        """Return the mean bits per weight that is used to decode a token.

        ``layers`` is the number of bits per weight in decoder layers, also in parts without a value.
        """
        down, head = self.layers * self.hidden * self.intermediate, self.vocabulary * self.hidden
        extra = down * ((down_proj or layers) - layers) + head * ((lm_head or layers) - layers)
        return layers + extra / self.decoder_parameters

    @property
    def tower_parameters(self) -> int:
        """Return the number of parameters that are used to encode an image: tower and projector."""
        layer = 4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_intermediate
        return (self.vision_layers - 1) * layer + self.hidden * (self.vision_hidden + self.hidden)

    def decode_bytes(self, context: int, *, bits: float) -> float:
        """Return the bytes read per decode step: ``bits``-bit weights, and keys and values in bf16."""
        return self.decoder_parameters * bits / 8 + context * self.kv_bytes_per_token

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.layers * self.hidden

    def prefill_operations(self, num_tokens: int) -> float:
        """Return the number of additions and multiplications for a prompt, including attention."""
        head = self.vocabulary * self.hidden  # only for the last token
        linear = 2.0 * (num_tokens * (self.decoder_parameters - head) + head)
        return (
            linear + 2.0 * self.layers * self.hidden * num_tokens**2
        )  # causal attention: only half of the matrix

    def image_operations(self) -> float:
        """Return the number of additions and multiplications in the tower and projector for one image."""
        tokens = self.image_tokens + 1
        attention = 4.0 * (self.vision_layers - 1) * self.vision_hidden * tokens**2
        return 2.0 * tokens * self.tower_parameters + attention

    def _projector(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for number, width in ((1, self.vision_hidden), (2, self.hidden)):
            yield f"multi_modal_projector.linear_{number}.weight", (self.hidden, width)
            yield f"multi_modal_projector.linear_{number}.bias", (self.hidden,)

    def _tower(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix, width = "vision_tower.vision_model", self.vision_hidden
        yield f"{prefix}.embeddings.class_embedding", (width,)
        yield f"{prefix}.embeddings.patch_embedding.weight", (width, 3, self.patch, self.patch)
        yield f"{prefix}.embeddings.position_embedding.weight", (self.image_tokens + 1, width)
        for name in ("pre_layrnorm", "post_layernorm"):  # the misspelling comes from CLIP
            yield f"{prefix}.{name}.weight", (width,)
            yield f"{prefix}.{name}.bias", (width,)
        matrices = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        matrices |= {
            "mlp.fc1": (self.vision_intermediate, width),
            "mlp.fc2": (width, self.vision_intermediate),
        }
        for i in range(self.vision_layers):
            for norm in ("layer_norm1", "layer_norm2"):
                yield f"{prefix}.encoder.layers.{i}.{norm}.weight", (width,)
                yield f"{prefix}.encoder.layers.{i}.{norm}.bias", (width,)
            for name, (rows, columns) in matrices.items():
                yield f"{prefix}.encoder.layers.{i}.{name}.weight", (rows, columns)
                yield f"{prefix}.encoder.layers.{i}.{name}.bias", (rows,)

    def _decoder(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix, width = "language_model.model", self.hidden
        yield f"{prefix}.embed_tokens.weight", (self.vocabulary, width)
        matrices = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "o")}
        matrices |= {f"mlp.{part}_proj": (self.intermediate, width) for part in ("gate", "up")}
        matrices |= {"mlp.down_proj": (width, self.intermediate)}
        for i in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}.layers.{i}.{norm}.weight", (width,)
            for name, shape in matrices.items():
                yield f"{prefix}.layers.{i}.{name}.weight", shape
        yield f"{prefix}.norm.weight", (width,)
        yield "language_model.lm_head.weight", (self.vocabulary, width)


# LLaVA-1.5 with CLIP-L/14-336 and a decoder with 1.3 instead of 7 billion parameters, which is fast enough on
# two CPU cores.
LLAVA_1_5_SMALL = Shape(
    hidden=2048,
    layers=24,
    heads=16,
    intermediate=5504,
    vocabulary=32064,
    context=4096,
    vision_hidden=1024,
    vision_layers=24,
    vision_heads=16,
    vision_intermediate=4096,
    image_side=336,
    patch=14,
)

# LLaVA-1.5-7B.
LLAVA_1_5_7B = replace(LLAVA_1_5_SMALL, hidden=4096, layers=32, heads=32, intermediate=11008)

MINI = Shape(
    hidden=64,
    layers=2,
    heads=4,
    intermediate=96,
    vocabulary=2048,
    context=512,
    vision_hidden=32,
    vision_layers=3,
    vision_heads=4,
    vision_intermediate=64,
    image_side=28,
    patch=14,
)
