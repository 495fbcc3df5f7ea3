"""An engine for a LLaVA model with random weights.

The weights are generated on the device, so no checkpoint is necessary. They are loaded in chunks of rows,
just like the weights of a checkpoint, so all precisions are supported.
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from llava_worker.engine.core.kv_cache_size import plan_cache
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.assemble_engine import assemble_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.engine.startup.plan import StartupPlan
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.config.model_config import ImageConfig, read_config, read_image_config
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool
from llava_worker.model.gpu.current_gpu import release_cached_memory
from llava_worker.model.gpu.decode_speed import decode_seconds
from llava_worker.model.layers.linear import Linear
from llava_worker.model.llava import Llava
from llava_worker.model.quantization.precision import Precision, choose_precision
from torch import nn

from bench.shape import Shape

__all__ = ["make_engine", "make_model", "precision_on", "release_memory"]

_CHUNK_ROWS = 4096


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
    use_cuda_graphs: bool = True,
) -> Engine:
    """Return an engine configured like a worker's, but without speculative decoding.

    A model with random weights repeats itself, so drafts would be accepted more often than in practice.
    """
    device, text = model.device, model.config.text_config
    config = EngineConfig(
        Path("random"),
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        kv_cache_dtype=kv_cache_dtype,
        encoder_cache_bytes=1 << 30,
        use_speculation=False,
        use_cuda_graphs=use_cuda_graphs,
    )
    memory = MemoryBudget.measure(device, num_ranks=1, gpu_utilization=config.gpu_memory_utilization)
    weights = sum(tensor.nbytes for tensor in model.parameters())  # allocated before this measurement
    memory = replace(memory, free_bytes=memory.free_bytes + weights)
    measure = partial(decode_seconds, text=text, precision=precision, device=device)
    backend = choose_backend(precision, text, device, is_int8_cache=kv_cache_dtype == "int8", measure=measure)
    spec = plan_cache(
        model.config,
        precision,
        kv_cache_dtype=kv_cache_dtype,
        device=device,
        max_bytes=None,
        free_bytes=memory.left_bytes(),
        block_size=backend.block_size,
        is_head_major=backend.is_head_major,
        max_num_sequences=max_num_sequences,
    )
    plan = StartupPlan(
        config, model.config, ImageConfig(), precision, device, backend, max_batch_tokens, spec, memory
    )
    pool = CudaGraphPool(device) if plan.captures_graphs else None
    return assemble_engine(model, plan, pool, eos_ids=eos_ids)


def release_memory() -> None:
    """Release the memory of engines that are no longer used. An engine takes nearly all of a GPU's memory."""
    gc.collect()
    release_cached_memory()


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
    deviation = 1.0 if "Embedding" in type(module).__name__ else 1 / math.sqrt(math.prod(parameter.shape[1:]))
    # In fp32, so that models in different precisions have the same weights.
    values = torch.empty(parameter.shape, device=parameter.device)
    parameter.copy_(values.normal_(0.0, deviation, generator=noise))
