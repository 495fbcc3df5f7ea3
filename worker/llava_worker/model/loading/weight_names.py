"""What the tensors of every known layout are called here.

A canonical name is the model's own attribute path, with the parts of a fused layer (q_proj, k_proj, v_proj)
named one by one.

    llava-hf as published     language_model.model.*  vision_tower.vision_model.*      multi_modal_projector.*
    transformers 5's modules  the same names behind "model.", the tower without "vision_model."
    the original              model.layers.* ...      model.vision_tower.vision_tower.* model.mm_projector.*
    a tower's own folder                              vision_model.* or embeddings.* ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["canonical", "canonical_in_tower", "is_unneeded"]

# (prefix in the file, canonical prefix); the first that fits counts.
_RULES = (
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model."),
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.embed_tokens.", "language_model.embed_tokens."),
    ("model.layers.", "language_model.layers."),
    ("model.norm.", "language_model.norm."),
    ("lm_head.", "lm_head."),
)
_TOWER_RULES = (
    ("vision_model.", "vision_tower."),
    ("embeddings.", "vision_tower.embeddings."),
    ("encoder.", "vision_tower.encoder."),
    ("pre_layrnorm.", "vision_tower.pre_layrnorm."),
    ("post_layernorm.", "vision_tower.post_layernorm."),
    ("head.", "vision_tower.head."),
)
# The original's projector is a torch Sequential, its linear layers at even numbers; a lone one has none.
_ORIGINAL_PROJECTOR = re.compile(r"model\.mm_projector\.(?:(\d*[02468])\.)?(weight|bias)")

# Canonical names that some files carry although nobody wants them: constants, what stands behind the layer
# of the tower that is read, and the output layer where it is the embedding table. After them the halves of
# CLIP and SigLIP that read text.
_UNNEEDED = re.compile(
    r".*\.rotary_emb\.inv_freq|vision_tower\.embeddings\.position_ids"
    r"|vision_tower\.post_layernorm\.(weight|bias)|vision_tower\.head\..*|lm_head\.weight"
    r"|text_model\..*|(text|visual)_projection\.weight|logit_scale|logit_bias"
)
_TOWER_LAYER = re.compile(r"vision_tower\.encoder\.layers\.\d+\.")


def canonical(name: str) -> str:
    """Of a tensor in a model's folder; a name that no layout has comes back as it is."""
    name = name.removeprefix("base_model.model.")  # put before everything by the adapters' library
    name = name.removeprefix("model.") if name.startswith("model.model.") else name
    projector = _ORIGINAL_PROJECTOR.fullmatch(name)
    if projector is not None:
        return f"multi_modal_projector.linear_{int(projector[1] or 0) // 2 + 1}.{projector[2]}"
    return _by_prefix(name, _RULES)


def canonical_in_tower(name: str) -> str:
    """Of a tensor in the folder of a vision tower, or of a whole CLIP or SigLIP."""
    return _by_prefix(name, _TOWER_RULES)


def is_unneeded(name: str, wanted: Iterable[str]) -> bool:
    """Whether a tensor of this canonical name, which is not wanted, is known as one to pass over."""
    layer = _TOWER_LAYER.match(name)
    if layer is not None:
        return not any(other.startswith(layer[0]) for other in wanted)
    return _UNNEEDED.fullmatch(name) is not None


def _by_prefix(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for prefix, target in rules:
        if name.startswith(prefix):
            return target + name.removeprefix(prefix)
    return name
