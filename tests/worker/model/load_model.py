"""Loads a checkpoint as a model on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import Precision, choose_precision

CPU = torch.device("cpu")


def load_model(
    folder: Path,
    precision: Precision | str = "fp32",
    *,
    tower: Path | None = None,
    base: Path | None = None,
    allow_pickle: bool = False,
) -> Llava:
    if isinstance(precision, str):
        precision = choose_precision(precision, CPU)
    config, image = read_config(folder, tower), read_image_config(folder, tower)
    model = Llava(config, image, precision=precision, device=CPU)
    load_weights(model, folder, vision_tower=tower, base=base, allow_pickle=allow_pickle)
    return model


def assert_same_weights(one: Llava, other: Llava) -> None:
    """To the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different
