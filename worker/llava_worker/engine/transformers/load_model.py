"""Loads a checked checkpoint with transformers, in a floating-point format or quantized with bitsandbytes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from llava_worker.engine.transformers.checkpoint import TransformersCheckpoint, reason_of
from llava_worker.model.available_memory import available_bytes
from llava_worker.model.config.untrusted_file import CheckpointError
from llava_worker.model.memory_estimate import WORKING_BYTES, InsufficientMemory
from llava_worker.model.quantization.bitsandbytes import require_bitsandbytes
from llava_worker.model.quantization.precision import choose_dtype

__all__ = ["load_model"]

_QUANTIZED_BITS = {"int8": 8, "int4": 4}
_SMALL_BYTES = 256 << 20  # in fp32, like the native engine
_NF4_BLOCK = 64  # weights per scale
_OUTLIER_THRESHOLD = 6.0  # see `BnbInt8Linear`

logger = logging.getLogger(__name__)


def load_model(
    checkpoint: TransformersCheckpoint, precision: str, device: torch.device
) -> tuple[nn.Module, str]:
    """Load the model on the device. Return it with the name of its precision.

    With int8 and int4, the linear layers of the decoder are quantized, as in the native engine.

    Raises CheckpointError if tensors are missing or have wrong shapes, ValueError if the precision is not
    available, and InsufficientMemory if the model does not fit in memory.
    """
    bits = _QUANTIZED_BITS.get(precision)
    if bits is not None:
        require_bitsandbytes(precision)
    is_small = checkpoint.num_parameters * 4 <= _SMALL_BYTES
    name, dtype = choose_dtype("auto" if bits else precision, device, is_small=is_small)
    _require_memory(checkpoint, dtype, device)
    model = _load(checkpoint, dtype)
    if bits is not None:
        _quantize(model.get_decoder(), bits, dtype, device)
    return model.eval().requires_grad_(False).to(device), precision if bits else name


def _require_memory(checkpoint: TransformersCheckpoint, dtype: torch.dtype, device: torch.device) -> None:
    for target in {device, torch.device("cpu")}:
        free = available_bytes(target)
        needed = checkpoint.num_parameters * dtype.itemsize + WORKING_BYTES
        if free is not None and needed > free and (target == device or device.type == "cpu"):
            needed_mib, free_mib = needed >> 20, free >> 20
            raise InsufficientMemory(
                f"The weights need {needed_mib} MiB, but {target} has only {free_mib} MiB free. Use a "
                "smaller model, or a device with more memory."
            )


def _load(checkpoint: TransformersCheckpoint, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint.folder,
            config=checkpoint.config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
        )
    except Exception as error:  # the files are untrusted, and a model class can raise anything
        reason = reason_of(error)
        raise CheckpointError(f"The weights in {checkpoint.folder} could not be loaded: {reason}.") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{len(missing)} tensors are missing from the weight files in {checkpoint.folder}, for example "
            f"{missing[0]}."
        )
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise CheckpointError(
            f"{len(mismatched)} tensors in {checkpoint.folder} have the wrong shape. For example, {name} has "
            f"the shape {list(stored)}; config.json requires {list(expected)}."
        )
    if unused := sorted(report["unexpected_keys"]):
        logger.warning("%d unused tensors in the weight files, for example %s", len(unused), unused[0])
    return model


def _quantize(module: nn.Module, bits: int, dtype: torch.dtype, device: torch.device) -> None:
    """Replace all linear layers. Each is quantized on the device before the next one is copied to it."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, _quantized(child, bits, dtype, device))
        else:
            _quantize(child, bits, dtype, device)


def _quantized(linear: nn.Linear, bits: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    if bits == 4 and linear.in_features % _NF4_BLOCK:
        raise ValueError(
            f"A layer has {linear.in_features} inputs; NF4 requires a multiple of {_NF4_BLOCK}. Use int8."
        )
    has_bias = linear.bias is not None
    size = (linear.in_features, linear.out_features)
    layer: nn.Module
    if bits == 8:
        layer = bnb.nn.Linear8bitLt(
            *size, bias=has_bias, has_fp16_weights=False, threshold=_OUTLIER_THRESHOLD
        )
        layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(*size, bias=has_bias, compute_dtype=dtype, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    if has_bias:
        layer.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    return layer.to(device)
