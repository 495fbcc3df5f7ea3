"""Helpers that load checkpoints on the CPU."""

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


def assert_same_weights(actual: Llava, expected: Llava) -> None:
    """Assert that two models have bitwise identical weights."""
    actual_weights, expected_weights = actual.state_dict(), expected.state_dict()
    assert actual_weights.keys() == expected_weights.keys()
    different = [
        name for name, tensor in actual_weights.items() if not torch.equal(tensor, expected_weights[name])
    ]
    assert not different
