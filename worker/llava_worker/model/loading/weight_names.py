"""Translates the tensor names of all supported checkpoint layouts to canonical names.

The canonical name of a tensor is its attribute path in `Llava`. The parts of a fused layer have separate
names (q_proj, k_proj, v_proj), unless they are fused in the checkpoint.

    llava-hf as published     language_model.model.*  vision_tower.vision_model.*      multi_modal_projector.*
    transformers 5 modules    the same with the prefix "model.", the tower without "vision_model."
    original LLaVA            model.layers.* ...      model.vision_tower.vision_tower.* model.mm_projector.*
    TinyLLaVA Factory         language_model.model.*  vision_tower._vision_tower.*     connector._connector.*
    separate tower folder                             vision_model.* or embeddings.* ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["canonical_name", "canonical_tower_name", "is_unused"]

# (prefix in the file, canonical prefix). The first match is used.
_PREFIXES = (
    ("language_model.model.final_layernorm.", "language_model.norm."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower._vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.final_layernorm.", "language_model.norm."),
    ("model.language_model.", "language_model."),
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.mm_projector.clip_layernorm.", "multi_modal_projector.projector_layernorm."),
    ("model.image_newline", "image_newline"),
    ("model.embed_tokens.", "language_model.embed_tokens."),
    ("model.layers.", "language_model.layers."),
    ("model.norm.", "language_model.norm."),
    ("model.final_layernorm.", "language_model.norm."),
    ("lm_head.", "lm_head."),
)
_TOWER_PREFIXES = (
    ("vision_model.", "vision_tower."),
    ("embeddings.", "vision_tower.embeddings."),
    ("encoder.", "vision_tower.encoder."),
    ("pre_layrnorm.", "vision_tower.pre_layrnorm."),
    ("post_layernorm.", "vision_tower.post_layernorm."),
    ("head.", "vision_tower.head."),
)
# In the original layout and that of TinyLLaVA Factory, the projector is either a Sequential with linear
# layers at even indices or a single linear layer. ViP-LLaVA adds a norm and a prefix.
_ORIGINAL_PROJECTOR = re.compile(
    r"(?:model\.mm_projector|connector\._connector)\."
    r"(?:final_linear\.)?(?:(\d{0,3}[02468])\.)?(weight|bias)"
)

# Canonical names of tensors that may be in the files but are not used: constants, modules of the vision tower
# after the last layer that is used, an LM head that is tied to the embedding table, and the text models of
# CLIP and SigLIP.
_UNUSED = re.compile(
    r".*\.rotary_emb\.inv_freq|vision_tower\.embeddings\.position_ids"
    r"|vision_tower\.post_layernorm\.(weight|bias)|vision_tower\.head\..*|lm_head\.weight"
    r"|text_model\..*|(text|visual)_projection\.weight|logit_scale|logit_bias"
)
_TOWER_LAYER = re.compile(r"vision_tower\.encoder\.layers\.\d+\.")


def canonical_name(name: str) -> str:
    """Translate the name of a tensor in a model folder. Return unknown names unchanged."""
    name = name.removeprefix("base_model.model.")  # PEFT
    name = name.removeprefix("model.") if name.startswith("model.model.") else name
    projector = _ORIGINAL_PROJECTOR.fullmatch(name)
    if projector is not None:
        return f"multi_modal_projector.linear_{int(projector[1] or 0) // 2 + 1}.{projector[2]}"
    return _by_prefix(name, _PREFIXES)


def canonical_tower_name(name: str) -> str:
    """Translate the name of a tensor in the folder of a vision tower or a complete CLIP or SigLIP model."""
    return _by_prefix(name, _TOWER_PREFIXES)


def is_unused(name: str, parameters: Iterable[str]) -> bool:
    """Return whether the tensor with this canonical name can be ignored.

    ``parameters`` are the names of all parameters of the model. They must not include ``name``.
    """
    layer = _TOWER_LAYER.match(name)
    if layer is not None:
        return not any(parameter.startswith(layer[0]) for parameter in parameters)
    return _UNUSED.fullmatch(name) is not None


def _by_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for prefix, canonical in prefixes:
        if name.startswith(prefix):
            return canonical + name.removeprefix(prefix)
    return name
