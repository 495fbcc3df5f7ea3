"""Small random checkpoints in the layouts of published models with Phi, with reference logits.

transformers has no classes for these models. As in their own code, the reference consists of transformers'
vision tower, a projector and transformers' language model, which are saved with the names of that code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel

from tests.worker.checkpoints import IMAGE_TOKEN, MEAN, STD, Prompt, normalized
from tests.worker.family import Member

__all__ = ["LAYOUTS", "write_phi_model"]

Values = dict[str, Any]


@dataclass(frozen=True)
class _Layout:
    """The names of the parts in the files, the configuration, and whether the first feature is dropped."""

    language: str
    lm_head: str
    tower: str
    projector: str
    text: Values
    vision: str
    config: Values
    drops_first: bool
    has_lm_head_bias: bool = False


_PHI = {"model_type": "phi", "partial_rotary_factor": 0.4, "hidden_size": 80, "num_attention_heads": 2}
_TEXT: Values = {
    "vocab_size": IMAGE_TOKEN + 1,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_FACTORY = {
    "model_type": "tinyllava",
    "architectures": ["TinyLlavaForConditionalGeneration"],
    "connector_type": "mlp2x_gelu",
    "image_aspect_ratio": "square",
    "image_token_index": -200,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "patch",
    "vision_model_name_or_path2": "",
}
_ORIGINAL = {
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
}
_FACTORY_NAMES = ("language_model.model.", "language_model.lm_head.", "vision_tower._vision_tower.")
_ORIGINAL_NAMES = ("model.", "lm_head.", "model.vision_tower.vision_tower.")

LAYOUTS = {
    "TinyLLaVA-Phi-2-SigLIP-3.1B": _Layout(
        *_FACTORY_NAMES,
        "connector._connector.",
        _PHI,
        "siglip",
        _FACTORY,
        drops_first=True,
        has_lm_head_bias=True,
    ),
    "TinyLLaVA-Qwen2-0.5B-SigLIP": _Layout(
        *_FACTORY_NAMES,
        "connector._connector.",
        {"model_type": "qwen2", "tie_word_embeddings": True},
        "siglip",
        _FACTORY,
        drops_first=True,
    ),
    "TinyLLaVA-3.1B": _Layout(
        *_ORIGINAL_NAMES,
        "model.mm_projector.",
        _PHI,
        "siglip",
        _ORIGINAL | {"model_type": "tiny_llava_phi", "mm_vision_tower": "bczhou/TinyLLaVA-3.1B-SigLIP"},
        drops_first=False,
    ),
    "LLaVA-Phi-3-mini-4k-instruct": _Layout(
        *_ORIGINAL_NAMES,
        "model.mm_projector.",
        {"model_type": "phi3", "sliding_window": 11},
        "clip",
        _ORIGINAL | {"model_type": "llava_phi", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        drops_first=True,
    ),
}


def write_phi_model(name: str, folder: Path, **text: Any) -> Member:
    """Write a checkpoint in the layout of the published model with this name.

    ``text`` changes the configuration of the decoder.
    """
    torch.manual_seed(4)
    layout = LAYOUTS[name]
    reference = _Reference(layout, text)
    save_file(reference.tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    text_config, vision = (part.config.to_dict() for part in (reference.language, reference.tower))
    if layout.config["model_type"] == "tinyllava":
        config = {"text_config": text_config, "vision_config": vision} | layout.config
    else:
        config = text_config | {"vision_config": vision} | layout.config
    (folder / "config.json").write_text(json.dumps(config))
    colors = {"image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist()}
    (folder / "preprocessor_config.json").write_text(json.dumps(colors))
    return Member(folder, reference.logits)


class _Reference:
    def __init__(self, layout: _Layout, changes: Values) -> None:
        self._layout = layout
        text: Any = AutoConfig.for_model(**_TEXT | layout.text | changes)
        self.language: Any = AutoModelForCausalLM.from_config(text)
        tower_class: Any = SiglipVisionModel if layout.vision == "siglip" else CLIPVisionModel
        vision = AutoConfig.for_model(
            f"{layout.vision}_vision_model",
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=28,
            patch_size=7,
        )
        self.tower: Any = tower_class(vision)
        self.projector = torch.nn.Sequential(
            torch.nn.Linear(24, text.hidden_size),
            torch.nn.GELU(),
            torch.nn.Linear(text.hidden_size, text.hidden_size),
        )
        for parameter in self.projector.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        for name, parameter in self.language.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        if not layout.has_lm_head_bias and self.language.lm_head.bias is not None:
            torch.nn.init.zeros_(self.language.lm_head.bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        layout = self._layout
        parts = ((self.language.model, layout.language), (self.tower, layout.tower + "vision_model."))
        named = [(prefix, part.state_dict()) for part, prefix in (*parts, (self.projector, layout.projector))]
        head = self.language.lm_head.state_dict()
        if self.language.config.tie_word_embeddings:
            head = {}
        if not layout.has_lm_head_bias:
            head.pop("bias", None)
        tensors = {
            prefix + name.removeprefix("vision_model."): tensor
            for prefix, part in [*named, (layout.lm_head, head)]
            for name, tensor in part.items()
        }
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.inference_mode()
    def logits(self, prompt: Prompt) -> torch.Tensor:
        """Return the logits, [tokens, vocab]."""
        x = self.language.get_input_embeddings()(torch.tensor(prompt.token_ids)).clone()
        for start, tiles in zip(prompt.image_starts, prompt.pixels, strict=True):
            states = self.tower(normalized(tiles), output_hidden_states=True).hidden_states[-2]
            features = self.projector(states[:, 1:] if self._layout.drops_first else states).flatten(0, 1)
            x[start : start + len(features)] = features
        logits: torch.Tensor = self.language(inputs_embeds=x[None]).logits
        return logits[0]
