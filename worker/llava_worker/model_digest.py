"""The digest of a served model: workers with equal digests generate equal outputs, up to rounding.

It covers the weights, config.json, the image preprocessing, the tokenizer, the conversation template, the
end-of-sequence tokens, the precision and the data type of the KV cache. The following have no effect on it,
because they change at most the rounding or the maximum length of an output: the name and folder of the model,
the distribution of its tensors across files, the device, the attention kernel, the number of ranks,
speculation, scheduling and memory limits. The digests of the native engine and of the transformers engine
always differ.

The two layouts of the same checkpoint (llava-hf and original) have different digests.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.language.prompt_formats import PromptTemplate

if TYPE_CHECKING:
    from llava_worker.engine.startup.model_info import ModelInfo

__all__ = ["digest_checkpoint", "digest_echo", "digest_transformers"]

_TRANSFORMERS_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_VERSION = 1  # increase it if the digest of an unchanged model changes


def digest_echo(template: PromptTemplate) -> str:
    """Return the digest of the echo model, which depends only on the prompt."""
    return _digest(engine="echo", template=template.definition)


def digest_checkpoint(
    config: EngineConfig,
    info: ModelInfo,
    template: PromptTemplate,
    *,
    tokenizer_folder: Path,
) -> str:
    """Return the digest of a model that was loaded from files. Raises CheckpointError or OSError."""
    from llava_worker.language.hf_tokenizer import tokenizer_files
    from llava_worker.model.config.model_config import read_config, read_image_config

    model = read_config(config.config_folder, config.vision_tower)
    image = read_image_config(config.config_folder, config.vision_tower, vision=model.vision_config)
    # Default values are omitted, so that options added by a later release do not change the digest.
    return _digest(
        weights=info.weights_digest,
        model=model.model_dump_json(exclude_defaults=True),
        image=image.model_dump_json(exclude_defaults=True),
        eos_ids=sorted(info.eos_ids),
        tokenizer=[_digest_file(path) for path in tokenizer_files(tokenizer_folder)],
        template=template.definition,
        precision=info.precision,
        kv_cache_dtype=config.kv_cache_dtype,
    )


def digest_transformers(
    weights_digest: str, precision: str, template: PromptTemplate, *, folder: Path
) -> str:
    """Return the digest of a model that the transformers engine runs. Raises OSError."""
    files = [path for name in _TRANSFORMERS_FILES if (path := folder / name).is_file()]
    return _digest(
        engine="transformers",
        weights=weights_digest,
        files={path.name: _digest_file(path) for path in files},
        template=template.definition,
        precision=precision,
    )


def _digest(**parts: object) -> str:
    """Return 32 hexadecimal digits."""
    text = json.dumps({"version": _VERSION, **parts}, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _digest_file(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
