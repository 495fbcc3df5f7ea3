"""Fixtures: a random checkpoint, and functions that make engines and sequences and run them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_worker.engine import ImageSpan, Sequence, StepOutput
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.checkpoints import Prompt, Reference, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.sampling_params import greedy

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread.

    More threads do not speed up operations on small matrices, and on shared cores, they slow such operations
    down.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, write_checkpoint(folder)


@pytest.fixture(scope="session")
def reference(checkpoint: tuple[Path, Reference]) -> Reference:
    return checkpoint[1]


@pytest.fixture(scope="session")
def model(checkpoint: tuple[Path, Reference]) -> Llava:
    folder = checkpoint[0]
    precision = choose_precision("fp32", CPU)
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=CPU)
    load_weights(model, folder)
    return model


@pytest.fixture(scope="session")
def make_engine(model: Llava) -> MakeEngine:
    """Return a function that makes engines.

    Their KV cache is filled with NaN, so that invalid reads are detected. ``over`` is the model of the
    engine. By default, all tests use the same model. ``runner`` can be a subclass of ModelRunner. If
    ``is_int8`` is true, the KV cache is int8.
    """

    def make(
        *,
        over: Llava = model,
        runner: type[ModelRunner] = ModelRunner,
        is_int8: bool = False,
        num_blocks: int = 64,
        block_size: int = 4,
        encoder_cache_bytes: int = 1 << 20,
        **options: Any,
    ) -> Engine:
        text = over.config.text_config
        spec = KVCacheSpec.for_model(
            text, num_blocks=num_blocks, block_size=block_size, dtype=over.dtype, is_int8=is_int8
        )
        cache = KVCache(spec, CPU)
        shape = (num_blocks * block_size, text.num_key_value_heads, text.head_dim)
        nan = torch.full(shape, torch.nan, dtype=over.dtype)
        for layer in range(text.num_hidden_layers):
            cache.write(layer, torch.arange(len(nan)), nan, nan)
        defaults: dict[str, Any] = {
            "eos_ids": frozenset({2}),
            "context_length": min(text.max_position_embeddings, num_blocks * block_size),
            "max_num_sequences": 8,
            "max_batch_tokens": 16,
        }
        return Engine(
            runner(over, cache, SdpaBackend(), EncoderCache(encoder_cache_bytes)), **defaults | options
        )

    return make


@pytest.fixture(scope="session")
def make_sequence() -> MakeSequence:
    """Return a function that makes sequences from prompts. Other arguments are passed to SamplingParams."""

    def make(
        prompt: Prompt,
        *,
        seq_id: str = "one",
        max_new_tokens: int = 12,
        output_ids: Iterable[int] = (),
        cache_scope: str = "",
        **sampling: Any,
    ) -> Sequence:
        return Sequence(
            seq_id=seq_id,
            prompt_ids=list(prompt.token_ids),
            max_new_tokens=max_new_tokens,
            images=spans_of(prompt),
            pixels=[tile.tobytes() for tile in prompt.pixels],
            sampling=greedy(**sampling),
            output_ids=list(output_ids),
            cache_scope=cache_scope,
        )

    return make


@pytest.fixture(scope="session")
def run() -> Run:
    """Return a function that runs sequences until all have finished. Blocks are checked after every step."""

    def drive(engine: Engine, sequences: Iterable[Sequence]) -> dict[str, list[int]]:
        output_ids: dict[str, list[int]] = {}
        for sequence in sequences:
            output_ids[sequence.seq_id] = list(sequence.output_ids)
            engine.add(sequence)
        while engine.num_sequences:
            for output in engine.step():
                collect(output_ids, output)
            engine.check()
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
        return output_ids

    return drive


def spans_of(prompt: Prompt) -> list[ImageSpan]:
    """Return the image spans of a prompt. By default, each image has one tile and four tokens."""
    lengths = prompt.lengths or [4] * len(prompt.pixels)
    sizes = [
        size if len(tiles) > 1 else (0, 0) for size, tiles in zip(prompt.sizes, prompt.pixels, strict=False)
    ]
    return [
        ImageSpan(start, length, digest, *size)
        for start, length, digest, size in zip(
            prompt.image_starts, lengths, prompt.digests, sizes or [(0, 0)] * len(lengths), strict=True
        )
    ]


def collect(output_ids: dict[str, list[int]], output: StepOutput) -> None:
    assert output.error is None, output
    if output.token_id is not None:
        output_ids[output.seq_id].append(output.token_id)
