"""From a folder to a running engine, everything sized once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llava_worker.engine.cache_size import CacheShape, shape_cache
from llava_worker.engine.engine import Engine
from llava_worker.engine.runner import ModelRunner
from llava_worker.engine.vision_cache import VisionCache
from llava_worker.model.config import (
    CheckpointError,
    ImageConfig,
    ModelConfig,
    read_config,
    read_eos_ids,
    read_image_config,
)
from llava_worker.model.llava import Llava
from llava_worker.model.memory import available_bytes, require_memory, weight_bytes
from llava_worker.model.picture import Fit, Resolution
from llava_worker.model.precision import Precision, choose_precision
from llava_worker.model.sdpa import SdpaBackend
from llava_worker.model.weights import Progress, load_weights

__all__ = ["CheckpointError", "ModelInfo", "load_engine"]

# Up to here fp32 costs neither noticeable memory nor time, and is exact.
SMALL_BYTES = 256 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the outside must know of a model to write prompts and fit pictures for it.

    ``context_length`` is what the engine takes, which a small KV cache makes less than the model could.
    """

    name: str  # the folder's
    image_side: int  # pixels
    fit: Fit
    background: tuple[int, int, int]
    tokens_per_tile: int
    image_token_id: int
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    precision: str
    device: str
    grid: tuple[Resolution, ...] = ()  # (width, height) in pixels; fits "anyres" and "hd" have one
    has_image_marks: bool = False  # the prompt has <im_start> and <im_end> around a picture


def load_engine(
    folder: str | Path,
    *,
    precision: str = "auto",
    device: str = "auto",
    max_num_sequences: int = 16,
    max_batch_tokens: int = 512,
    kv_cache_bytes: int | None = None,
    vision_cache_bytes: int = 256 << 20,
    block_size: int = 16,
    num_threads: int | None = None,
    vision_tower: str | Path | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    on_progress: Progress | None = None,
) -> tuple[Engine, ModelInfo]:
    """Load the checkpoint in ``folder`` and make an engine around it.

    ``precision`` is auto, fp32, bf16 or fp16; ``device`` auto or a torch device. The KV cache takes at most
    ``kv_cache_bytes`` (None: a share of what is free beside the weights), and no more than
    ``max_num_sequences`` full contexts need. Sets torch's thread count if told to. The last four
    are those of `load_weights`.

    Raises CheckpointError for a folder that can't be served, ValueError for a wrong setting, and of these
    MemoryShort, before anything is loaded, if the model does not fit.
    """
    files = _Folders.of(folder, vision_tower, base)
    where = _choose_device(device)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    config, image = _read(files)
    is_small = weight_bytes(config, image, "fp32") <= SMALL_BYTES
    number_format = choose_precision(precision, where, is_small=is_small)
    shape = shape_cache(
        config,
        number_format,
        max_bytes=kv_cache_bytes,
        free_bytes=_free_beside_weights(config, image, number_format, where),
        block_size=block_size,
        max_num_sequences=max_num_sequences,
    )
    require_memory(config, image, precision=number_format.name, device=where, cache_bytes=shape.num_bytes)
    model = Llava(config, image, precision=number_format, device=where)
    load_weights(
        model,
        files.folder,
        vision_tower=files.vision_tower,
        base=files.base,
        allow_pickle=allow_pickle,
        on_progress=on_progress,
    )
    info = _describe(files, config, image, shape, number_format, where)
    engine = Engine(
        ModelRunner(model, shape.make(where), SdpaBackend(), VisionCache(vision_cache_bytes)),
        eos_ids=info.eos_ids,
        context_length=info.context_length,
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
    )
    return engine, info


def _describe(
    files: _Folders,
    config: ModelConfig,
    image: ImageConfig,
    shape: CacheShape,
    precision: Precision,
    device: torch.device,
) -> ModelInfo:
    pictures = config.picture_layout(_fit(image))
    return ModelInfo(
        name=files.folder.resolve().name,
        image_side=pictures.side,
        fit=pictures.fit,
        background=(0, 0, 0) if pictures.has_grid else _background(image),
        tokens_per_tile=config.tokens_per_tile,
        image_token_id=config.image_token_id,
        context_length=min(config.text_config.max_position_embeddings, shape.num_tokens),
        vocab_size=config.text_config.vocab_size,
        eos_ids=read_eos_ids(files.config, config),
        precision=precision.name,
        device=str(device),
        grid=pictures.grid,
        has_image_marks=config.mm_use_im_start_end,
    )


def _read(files: _Folders) -> tuple[ModelConfig, ImageConfig]:
    config = read_config(files.config, files.vision_tower)
    return config, read_image_config(files.config, files.vision_tower, vision=config.vision_config)


def _free_beside_weights(
    config: ModelConfig, image: ImageConfig, precision: Precision, device: torch.device
) -> int | None:
    """Bytes; None where nobody can tell. Raises MemoryShort if there are none."""
    require_memory(config, image, precision=precision.name, device=device, cache_bytes=0)
    free = available_bytes(device)
    return None if free is None else free - weight_bytes(config, image, precision.name)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("device auto: %s", name)
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, which torch does not know: use auto, cpu or cuda:0") from error


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where the parts of a checkpoint are. ``config`` is the one whose config.json describes the model."""

    folder: Path
    config: Path
    vision_tower: Path | None
    base: Path | None

    @classmethod
    def of(cls, folder: str | Path, vision_tower: str | Path | None, base: str | Path | None) -> _Folders:
        folder, tower = Path(folder), Path(vision_tower) if vision_tower else None
        if base is None:
            return cls(folder, folder, tower, None)
        # Adapters made by the original describe the whole model; others only themselves.
        has_config = (folder / "config.json").is_file()
        return cls(folder, folder if has_config else Path(base), tower, Path(base))


def _fit(image: ImageConfig) -> Literal["pad", "crop"]:
    """LLaVA-1.5 was trained on padded pictures, also where the checkpoint's files do not say so."""
    return "crop" if image.do_pad is False else "pad"


def _background(image: ImageConfig) -> tuple[int, int, int]:
    """The mean colour, cut to whole numbers as the original does: (122, 116, 104) for CLIP."""
    red, green, blue = (int(mean * 255) for mean in image.image_mean)
    return red, green, blue
