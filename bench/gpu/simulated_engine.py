"""An engine on the meta device, which records the kernels that a GPU would have to compile.

    engine = SimulatedEngine("fp16", backend)       starts and warms up like that of a worker
    engine.run(500) - engine.compiled               kernel variants that the warm-up did not compile

Everything except the device is that of a worker: the start of the engine, the scheduler, the model runner and
the sampler. The model has the sizes of LLaVA-1.5-7B, but fewer layers. It computes nothing. Copies from the
device to the host contain ones, so each sampled token is token 1.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.engine import Engine
from llava_worker.engine.sampling import sampled_tokens
from llava_worker.engine.startup.assemble_engine import assemble_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.engine.startup.plan import StartupPlan
from llava_worker.model.attention.kv_cache import KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.device_copy import HostCopy
from llava_worker.model.llava import Llava
from torch import Tensor

from bench.gpu.kernel_variant import variant_of
from bench.gpu.launches import CONTEXT, META, TEXT_CONFIGS, gpu_precision, recorded_launches

__all__ = ["SimulatedEngine"]

_MAX_SEQUENCES = 64
_MAX_BATCH_TOKENS = 1024
_ARRIVALS = (0, 0, 0, 1, 5)  # requests per step
_IMAGE_SHARE = 0.1  # of the requests


class SimulatedEngine:
    """An engine with random requests. ``compiled`` are the kernel variants that its warm-up compiles."""

    def __init__(self, precision: str, backend: PagedBackend, *, is_int8_cache: bool = False) -> None:
        self._rng = random.Random(0)
        self._num_requests = 0
        with _needed_variants() as self.compiled:
            self._engine = _start(precision, backend, is_int8_cache)

    def run(self, num_steps: int) -> set[str]:
        """Run steps, before each of which requests may arrive. Return the kernel variants that they need."""
        with _needed_variants() as needed:
            for _ in range(num_steps):
                for _ in range(self._rng.choice(_ARRIVALS)):
                    self._engine.add(self._request())
                self._engine.step()
        return needed

    def _request(self) -> Sequence:
        """Return a request. Its image, if it has one, may be cached."""
        rng, config = self._rng, _config()
        self._num_requests += 1
        length = rng.choice((rng.randint(1, 30), rng.randint(30, CONTEXT // 2)))
        prompt = [rng.randrange(3, 1000) for _ in range(length)]
        images: list[ImageSpan] = []
        if rng.random() < _IMAGE_SHARE:
            images = [ImageSpan(length, config.tokens_per_tile, str(rng.randrange(50)))]
            prompt += [config.image_token_id] * config.tokens_per_tile + [5]
        return Sequence(
            seq_id=str(self._num_requests),
            prompt_ids=prompt,
            max_new_tokens=rng.randint(1, 50),
            images=images,
            pixels=[bytes(3 * config.image_layout().side ** 2)] * len(images),
        )


@cache
def _config() -> ModelConfig:
    default = ModelConfig(model_type="llava")
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": CONTEXT, "vocab_size": 32_064}
    text = TEXT_CONFIGS["7b"].model_copy(update=sizes)
    vision = default.vision_config.model_copy(update={"num_hidden_layers": 2})
    return default.model_copy(update={"text_config": text, "vision_config": vision})


def _start(name: str, backend: PagedBackend, is_int8_cache: bool) -> Engine:
    """Start an engine without CUDA graphs, so that all steps launch kernels."""
    config, image, precision = _config(), ImageConfig(), gpu_precision(name)
    engine_config = EngineConfig(Path(), max_num_sequences=_MAX_SEQUENCES)
    cache = KVCacheSpec.for_model(
        config.text_config,
        num_blocks=_MAX_SEQUENCES * CONTEXT // backend.block_size,
        block_size=backend.block_size,
        dtype=precision.dtype,
        is_int8=is_int8_cache,
    )
    memory = MemoryBudget.measure(META, num_ranks=1, gpu_utilization=1)
    plan = StartupPlan(
        engine_config, config, image, precision, META, backend, _MAX_BATCH_TOKENS, cache, memory
    )
    model = Llava(config, image, precision=precision, device=META)
    return assemble_engine(model, plan, pool=None, eos_ids=frozenset())


@contextmanager
def _needed_variants() -> Iterator[set[str]]:
    """Collect the kernel variants that are needed to run the block. The set is empty until its end."""
    needed: set[str] = set()
    with patch.object(sampled_tokens, "HostCopy", _Ones), recorded_launches() as launches:
        yield needed
    needed.update(variant_of(launch).key for launch in launches if launch.kernel is not None)


class _Ones(HostCopy):
    """A copy from the meta device, which contains ones."""

    def wait(self) -> list[Tensor]:
        return [torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in self._tensors]
