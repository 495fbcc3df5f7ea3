"""The shape of a LLaVA: its configuration, its tensors, and what a forward pass must read and compute.

Counts are of the mathematics, whoever computes it: they are the same for every server that is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["LLAVA_1_5_SMALL", "MINI", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """LLaVA-1.5: a Llama decoder, a CLIP tower read at the last layer but one without CLS, two linear layers.

    ``vision_layers`` counts all layers of the tower; the last one is in the file and never computed.
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
        """Tokens that a picture takes in the prompt."""
        return (self.image_side // self.patch) ** 2

    @property
    def image_token_id(self) -> int:
        return self.vocabulary - 64  # 32000 where the vocabulary is padded to 32064, as llava-hf does

    def config(self, dtype: str) -> dict[str, Any]:
        """``config.json`` as llava-hf writes it."""
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
        """Name and shape of every tensor, named as in the published llava-hf checkpoints."""
        yield from self._projector()
        yield from self._tower()
        yield from self._decoder()

    @property
    def decoder_parameters(self) -> int:
        """Of the layers and the output matrix: what one decoded token goes through."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden

    @property
    def tower_parameters(self) -> int:
        """Of the tower's computed layers and the projector: what one picture goes through."""
        layer = 4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_intermediate
        return (self.vision_layers - 1) * layer + self.hidden * (self.vision_hidden + self.hidden)

    def decode_bytes(self, context: int, *, bits: float) -> float:
        """Bytes that one decode step must read: all weights of ``bits`` each, and keys and values in bf16."""
        return self.decoder_parameters * bits / 8 + context * self.kv_bytes_per_token

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.layers * self.hidden

    def prefill_operations(self, num_tokens: int) -> float:
        """Operations (an addition or a multiplication each) of a prompt, attention among them."""
        head = self.vocabulary * self.hidden  # for the last token only
        linear = 2.0 * (num_tokens * (self.decoder_parameters - head) + head)
        return linear + 2.0 * self.layers * self.hidden * num_tokens**2  # causal: half of the square

    def image_operations(self) -> float:
        """Operations of tower and projector for one picture."""
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
        for name in ("pre_layrnorm", "post_layernorm"):  # the first one is spelt so
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


# LLaVA-1.5 with CLIP-L/14-336 and a decoder of 1.3 instead of 7 billion parameters: a size that two cores
# bring to an answer while somebody waits.
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
