"""An engine for a LLaVA model with random weights.

The weights are generated on the device, so no checkpoint is necessary. They are loaded in chunks of rows,
just like the weights of a checkpoint, so all precisions are supported.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import torch
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.core.kv_cache_size import allocate_cache, plan_cache
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.startup.graph_capture import capture_graphs
from llava_worker.engine.startup.warmup import max_tiles_per_step
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.layers.linear import Linear
from llava_worker.model.llava import Llava
from llava_worker.model.memory_estimate import available_bytes
from llava_worker.model.quantization.precision import Precision, choose_precision
from torch import nn

from bench.shape import Shape

__all__ = ["make_engine", "make_model", "precision_on"]

_CHUNK_ROWS = 4096
_STEP_BYTES = 2 << 30  # reserved for activations and CUDA graphs


@torch.inference_mode()
def make_model(shape: Shape, precision: Precision, device: torch.device) -> Llava:
    """Return a model whose random weights are scaled so that activations neither vanish nor explode."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(shape.config("float16")), encoding="utf-8")
        config = read_config(folder)
        image = read_image_config(folder, vision=config.vision_config)
    model = Llava(config, image, precision=precision, device=device)
    noise = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        if isinstance(module, Linear):
            _fill(module, device, noise)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                _draw(name, module, parameter, noise)
    return model


def make_engine(
    model: Llava,
    precision: Precision,
    *,
    max_num_sequences: int,
    max_batch_tokens: int,
    kv_cache_dtype: str = "auto",
    eos_ids: frozenset[int] = frozenset(),
) -> Engine:
    """Return an engine configured like a worker's, but without speculative decoding.

    A model with random weights repeats itself, so drafts would be accepted more often than in practice.
    """
    device, text = model.device, model.config.text_config
    backend = choose_backend(precision, text, device, is_int8_cache=kv_cache_dtype == "int8")
    free = available_bytes(device)
    shape = plan_cache(
        model.config,
        precision,
        kv_cache_dtype=kv_cache_dtype,
        device=device,
        max_bytes=None if free is None else max(free // 4, free - _STEP_BYTES),
        free_bytes=free,
        block_size=backend.block_size,
        max_num_sequences=max_num_sequences,
    )
    context = min(text.max_position_embeddings, shape.num_tokens)
    cache = allocate_cache(shape, device)
    cache.prefault(shape.num_tokens)
    runner = ModelRunner(model, cache, backend, EncoderCache(1 << 30))
    if device.type == "cuda":
        capture_graphs(
            runner,
            includes_decoding=precision.is_capturable,
            max_rows=max_num_sequences,
            max_tiles=max_tiles_per_step(model, max_batch_tokens),
            context_length=context,
        )
    return Engine(
        runner,
        eos_ids=eos_ids,
        context_length=context,
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        is_async=device.type == "cuda",
    )


def precision_on(name: str, device: torch.device) -> Precision:
    return choose_precision(name, device, is_small=device.type == "cpu")


def _fill(layer: Linear, device: torch.device, noise: torch.Generator) -> None:
    rows, size = layer.shape.out_features, layer.shape.in_features
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = torch.empty(min(_CHUNK_ROWS, rows - start), size, device=device)
        layer.load_rows(start, chunk.normal_(0.0, 1 / math.sqrt(size), generator=noise))
    if layer.shape.has_bias:
        layer.load_bias(0, torch.zeros(rows, device=device))


def _draw(name: str, module: nn.Module, parameter: nn.Parameter, noise: torch.Generator) -> None:
    if parameter.ndim == 1:
        parameter.fill_(0.0 if name == "bias" else 1.0)
        return
    size = math.prod(parameter.shape[1:])
    parameter.normal_(
        0.0, 1.0 if "Embedding" in type(module).__name__ else 1 / math.sqrt(size), generator=noise
    )
