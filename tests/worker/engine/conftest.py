"""A random checkpoint on disk for the whole run, engines over it, and a driver that runs one to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from llava_worker.engine import ImageSpan, Sequence, StepOutput
from llava_worker.engine.core.encoder_cache import EncoderCache
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.attention.int8_kv_cache import Int8KVCache
from llava_worker.model.attention.kv_cache import ExactKVCache
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision
from transformers import LlavaForConditionalGeneration

from tests.worker.checkpoints import Prompt, write_checkpoint
from tests.worker.sampling_params import greedy

CPU = torch.device("cpu")

EngineFactory = Callable[..., Engine]
Answers = dict[str, list[int]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Matrices this small gain nothing from a second thread and lose much where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlavaForConditionalGeneration]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, write_checkpoint(folder)


@pytest.fixture(scope="session")
def reference(checkpoint: tuple[Path, LlavaForConditionalGeneration]) -> LlavaForConditionalGeneration:
    return checkpoint[1]


@pytest.fixture(scope="session")
def model(checkpoint: tuple[Path, LlavaForConditionalGeneration]) -> Llava:
    folder = checkpoint[0]
    precision = choose_precision("fp32", CPU)
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=CPU)
    load_weights(model, folder)
    return model


@pytest.fixture(scope="session")
def make_engine(model: Llava) -> EngineFactory:
    """An engine whose cache starts out as NaN: what is read without having been written shows.

    ``over`` is the model, else that of the whole run; ``runner`` may be a class that looks on; ``kind`` is
    the KV cache's.
    """

    def make(
        *,
        over: Llava = model,
        runner: type[ModelRunner] = ModelRunner,
        kind: type[ExactKVCache] | type[Int8KVCache] = ExactKVCache,
        num_blocks: int = 64,
        block_size: int = 4,
        vision_cache_bytes: int = 1 << 20,
        **options: object,
    ) -> Engine:
        text = over.config.text_config
        cache = kind(
            num_blocks,
            block_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            dtype=over.dtype,
            device=CPU,
        )
        shape = (num_blocks * block_size, text.num_key_value_heads, text.head_dim)
        spoilt = torch.full(shape, torch.nan, dtype=over.dtype)
        for layer in range(text.num_hidden_layers):
            cache.write(layer, torch.arange(len(spoilt)), spoilt, spoilt)
        defaults = {
            "eos_ids": frozenset({2}),
            "context_length": min(text.max_position_embeddings, num_blocks * block_size),
            "max_num_sequences": 8,
            "max_batch_tokens": 16,
        }
        return Engine(
            runner(over, cache, SdpaBackend(), EncoderCache(vision_cache_bytes)), **defaults | options
        )

    return make


@pytest.fixture(scope="session")
def make_sequence() -> Callable[..., Sequence]:
    """A sequence for a prompt; ``options`` are fields of Sequence and of SamplingParams."""

    def make(
        prompt: Prompt,
        *,
        seq_id: str = "one",
        max_new_tokens: int = 12,
        output_ids: Iterable[int] = (),
        cache_scope: str = "",
        **sampling: object,
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
def run() -> Callable[..., Answers]:
    """Add sequences and step until all are answered; every step leaves the blocks in order."""

    def drive(engine: Engine, sequences: Iterable[Sequence]) -> Answers:
        answers: Answers = {}
        for sequence in sequences:
            answers[sequence.seq_id] = list(sequence.output_ids)
            engine.add(sequence)
        while engine.num_sequences:
            for output in engine.step():
                collect(answers, output)
            engine.check()
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
        return answers

    return drive


def spans_of(prompt: Prompt) -> list[ImageSpan]:
    """A prompt made by hand has pictures of one tile, four tokens each."""
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


def collect(answers: Answers, output: StepOutput) -> None:
    assert output.error is None, output
    if output.token_id is not None:
        answers[output.seq_id].append(output.token_id)
