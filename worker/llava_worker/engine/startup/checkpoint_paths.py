"""Where the parts of a checkpoint are, and on which device the model is to compute."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_worker.model.config.model_config import ImageConfig, ModelConfig, read_config, read_image_config

__all__ = ["Folders", "choose_device", "read_folders"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Folders:
    """``config`` is the one whose config.json describes the model."""

    folder: Path
    config: Path
    vision_tower: Path | None
    base: Path | None

    @classmethod
    def of(cls, folder: str | Path, vision_tower: str | Path | None, base: str | Path | None) -> Folders:
        folder, tower = Path(folder), Path(vision_tower) if vision_tower else None
        if base is None:
            return cls(folder, folder, tower, None)
        # Adapters made by the original describe the whole model; others only themselves.
        has_config = (folder / "config.json").is_file()
        return cls(folder, folder if has_config else Path(base), tower, Path(base))


def read_folders(files: Folders) -> tuple[ModelConfig, ImageConfig]:
    config = read_config(files.config, files.vision_tower)
    return config, read_image_config(files.config, files.vision_tower, vision=config.vision_config)


def choose_device(name: str, num_ranks: int = 1) -> torch.device:
    """The first of as many as there are ranks. Raises ValueError for a name that torch does not know, or
    where there are fewer GPUs than ranks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("device auto: %s", name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, which torch does not know: use auto, cpu or cuda:0") from error
    if num_ranks > 1 and device.type == "cuda":
        num_left = torch.cuda.device_count() - (device.index or 0)
        if num_left < num_ranks:
            raise ValueError(
                f"tensor_parallel is {num_ranks}, but from {name} on there are {num_left} GPUs: "
                f"give tensor_parallel {max(1, num_left)}, or another device"
            )
    return device
