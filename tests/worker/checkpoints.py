"""Small random LLaVA checkpoints, prompts for them, and reference outputs from transformers.

The weights have a large variance, which makes the logits far apart. The most likely token in fp32 therefore
does not depend on the order of additions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llava_worker.model.config.image_grid import ImageLayout
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    VipLlavaForConditionalGeneration,
)

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
IMAGE_TOKEN = 127

Reference = (
    LlavaForConditionalGeneration
    | LlavaNextForConditionalGeneration
    | LlavaOnevisionForConditionalGeneration
    | VipLlavaForConditionalGeneration
)

# Model classes in the LLaVA family, used as arguments for `write_checkpoint`.
MISTRAL: dict[str, Any] = {"model_type": "mistral", "sliding_window": 11}
PHI: dict[str, Any] = {"model_type": "phi", "partial_rotary_factor": 0.5}
PHI_3: dict[str, Any] = {"model_type": "phi3", "sliding_window": 11}
NEXT: dict[str, Any] = {
    "kind": "llava_next",
    "vision": {"image_size": 28, "patch_size": 7},
    "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],  # height, width
}
LLAVA_NEXT_MISTRAL: dict[str, Any] = NEXT | {"text": MISTRAL}
LLAVA_INTERLEAVE: dict[str, Any] = {
    "text": {"model_type": "qwen2", "tie_word_embeddings": True},
    "vision": {"model_type": "siglip_vision_model"},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
VIP_LLAVA: dict[str, Any] = {
    "kind": "vipllava",
    "vision": {"num_hidden_layers": 5},
    "vision_feature_layer": [-2, -3, 1],
}
LLAVA_ONEVISION: dict[str, Any] = {
    "kind": "llava_onevision",
    "text": {"model_type": "qwen2", "tie_word_embeddings": True},
    "vision": {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_2",
    "image_grid_pinpoints": [[28 * rows, 28 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)],
}


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    kind: str = "llava",
    **llava: Any,
) -> Reference:
    """Save a random model of the type ``kind`` with transformers, and return it."""
    torch.manual_seed(seed)
    text_defaults: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": IMAGE_TOKEN + 1,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256 if kind in ("llava", "vipllava") else 512,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    text_config = AutoConfig.for_model(**text_defaults | (text or {}))
    vision_defaults: dict[str, Any] = {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 28,
        "patch_size": 14,
    }
    vision_config = AutoConfig.for_model(**vision_defaults | (vision or {}))
    llava |= {"vision_config": vision_config, "text_config": text_config, "image_token_index": IMAGE_TOKEN}
    config = AutoConfig.for_model(kind, **llava)
    model: Reference = AutoModelForImageTextToText.from_config(config)
    model.train(False)
    for name, parameter in model.named_parameters():
        if "projector" in name or "newline" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@dataclass
class Prompt:
    """Token IDs with image placeholders.

    ``sizes`` contains the original image sizes, (width, height), or (0, 0) for images that are not split.
    """

    token_ids: list[int] = field(default_factory=list)
    image_starts: list[int] = field(default_factory=list)
    pixels: list[NDArray[np.uint8]] = field(
        default_factory=list
    )  # one array of shape [tiles, side, side, 3] per image
    lengths: list[int] = field(default_factory=list)  # number of tokens for each image
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def digests(self) -> list[str]:
        return [hashlib.sha256(tile.tobytes()).hexdigest() for tile in self.pixels]


PLAIN_LAYOUT = ImageLayout(side=28, tokens_per_tile=4)


def random_prompt(
    rng: np.random.Generator,
    *,
    num_images: int,
    layout: ImageLayout = PLAIN_LAYOUT,
    max_words: int = 12,
) -> Prompt:
    prompt = Prompt([1])
    is_split = num_images == 1 or layout.splits_several_images
    for _ in range(num_images):
        prompt.token_ids += rng.integers(3, 100, int(rng.integers(0, max_words))).tolist()
        prompt.image_starts.append(len(prompt.token_ids))
        size = (int(rng.integers(3, 150)), int(rng.integers(3, 150))) if is_split else (0, 0)
        plan = layout.plan(*size)
        shape = (plan.num_tiles, layout.side, layout.side, 3)
        prompt.pixels.append(rng.integers(0, 256, shape, dtype=np.uint8))
        prompt.token_ids += [IMAGE_TOKEN] * plan.num_tokens
        prompt.lengths.append(plan.num_tokens)
        prompt.sizes.append(size)
    prompt.token_ids += rng.integers(3, 100, int(rng.integers(1, max_words))).tolist()
    return prompt


def reference_logits(model: Reference, prompt: Prompt) -> torch.Tensor:
    """Return the logits computed by transformers, [tokens, vocab]."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([prompt.token_ids]), **_image_inputs(model, prompt))
    logits: torch.Tensor = output.logits
    return logits[0]


def reference_output(model: Reference, prompt: Prompt, max_new_tokens: int, **options: Any) -> list[int]:
    """Return the greedy output of transformers' ``generate``."""
    token_ids = torch.tensor([prompt.token_ids])
    generator: Any = model  # the type annotations of generate lack the model's inputs
    output: torch.Tensor = generator.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        **_image_inputs(model, prompt),
        **options,
    )
    generated: list[int] = output[0, token_ids.shape[1] :].tolist()
    return generated


def normalized(tiles: NDArray[np.uint8]) -> torch.Tensor:  # [tiles, side, side, 3] -> [tiles, 3, side, side]
    return (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def _image_inputs(model: Reference, prompt: Prompt) -> dict[str, Any]:
    if not prompt.pixels:
        return {}
    values = {"pixel_values": normalized(np.concatenate(prompt.pixels))}
    if isinstance(model, LlavaOnevisionForConditionalGeneration):
        values["batch_num_images"] = torch.tensor([len(prompt.pixels)])
    if not isinstance(model, LlavaForConditionalGeneration | VipLlavaForConditionalGeneration):
        values["image_sizes"] = torch.tensor([(height, width) for width, height in prompt.sizes])
    return values
