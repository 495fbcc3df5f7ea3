"""The device that a model runs on."""

from __future__ import annotations

import torch

from llava_worker.selection_log import log_device

__all__ = ["choose_device"]


def choose_device(name: str, num_ranks: int = 1) -> torch.device:
    """Return the device of the first rank.

    Raises ValueError if torch does not recognize the name, if the GPU does not exist, or if there are fewer
    GPUs than ranks.
    """
    if name == "auto":
        has_gpu = torch.cuda.is_available()
        name = "cuda" if has_gpu else "cpu"
        log_device(name, f"torch finds {'a' if has_gpu else 'no'} GPU")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device {name!r} is not recognized. Use auto, cpu, or a GPU such as cuda:0."
        ) from error
    if device.type == "cuda":
        num_left = torch.cuda.device_count() - (device.index or 0)
        if num_left < 1:
            num_gpus = torch.cuda.device_count()
            available = (
                f"only {num_gpus} GPUs are available, numbered from 0" if num_gpus else "no GPU is available"
            )
            raise ValueError(
                f"device is {name}, but {available}. Choose another device, or auto to use a GPU if there is "
                "one."
            )
        if num_left < num_ranks:
            maximum = max(1, num_left)
            raise ValueError(
                f"tensor_parallel is {num_ranks}, but only {num_left} GPUs are available from {name} "
                f"onward. Set tensor_parallel to {maximum}, or choose another device."
            )
    return device
