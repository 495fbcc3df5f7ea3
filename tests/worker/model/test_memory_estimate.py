"""A model that does not fit in memory is rejected before it is loaded. The error suggests alternatives."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.available_memory import available_bytes
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.memory_estimate import (
    InsufficientMemory,
    require_memory,
    weight_bytes,
)

CPU = torch.device("cpu")
IMAGE = ImageConfig()
LLAVA_7B = ModelConfig(model_type="llava")


def make_config(num_bytes: int) -> ModelConfig:
    """Return a model whose fp32 weights take ``num_bytes``, nearly all of them for the embedding table."""
    hidden_size = 1024 if num_bytes < 1 << 35 else 16384  # the size of the vocabulary is limited
    vocab_size = num_bytes // 4 // hidden_size
    text = {"vocab_size": vocab_size, "hidden_size": hidden_size, "num_hidden_layers": 1}
    return ModelConfig.model_validate(
        {"model_type": "llava", "text_config": text | {"tie_word_embeddings": True}}
    )


def test_weights_are_counted_without_allocating_them() -> None:
    assert round(weight_bytes(LLAVA_7B, IMAGE, "fp16") / 1e9, 1) == 14.1  # 7.06 billion parameters
    assert weight_bytes(LLAVA_7B, IMAGE, "fp32") == 2 * weight_bytes(LLAVA_7B, IMAGE, "bf16")


def test_quantized_weights_take_less_memory() -> None:
    fp32 = weight_bytes(LLAVA_7B, IMAGE, "fp32")

    assert 0.25 < weight_bytes(LLAVA_7B, IMAGE, "int8") / fp32 < 0.28
    assert 0.13 < weight_bytes(LLAVA_7B, IMAGE, "int4") / fp32 < 0.16


def test_a_model_that_fits_passes() -> None:
    require_memory(make_config(1 << 26), IMAGE, precision="fp32", device=CPU, cache_bytes=1 << 20)


def test_a_model_that_is_too_large_is_rejected_with_alternatives() -> None:
    free = available_bytes(CPU)
    assert free is not None

    with pytest.raises(
        InsufficientMemory,
        match=r"in fp32 and the KV cache needs 0.0 GiB, but cpu has only .* Use precision bf16",
    ):
        require_memory(make_config(int(free * 1.2)), IMAGE, precision="fp32", device=CPU, cache_bytes=1)
    with pytest.raises(InsufficientMemory, match="Use a smaller model"):
        require_memory(make_config(5 * free), IMAGE, precision="fp32", device=CPU, cache_bytes=1)
    with pytest.raises(InsufficientMemory, match="Use a KV cache of"):
        require_memory(make_config(1 << 26), IMAGE, precision="bf16", device=CPU, cache_bytes=2 * free)


def test_a_device_with_unknown_memory_is_not_limited() -> None:
    meta = torch.device("meta")
    assert available_bytes(meta) is None
    require_memory(LLAVA_7B, IMAGE, precision="fp32", device=meta, cache_bytes=1 << 60)
