"""Tests that the bundled model's embeddings equal the hidden states and image features in transformers."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import pytest
import torch
from llava_wire.messages.event import ErrorCode
from llava_worker.engine import ImageSpan, Sequence, StepOutput
from llava_worker.engine.core.encoder_cache import ImageKey
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.model_info import ModelInfo
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration

from tests.worker.checkpoints import normalized, reference_output
from tests.worker.engine.outputs import collect_outputs
from tests.worker.engine.tiny_model import TINY, draw_prompt, sequence_of

TOLERANCE = 1e-4

Embed = Callable[[Items[Sequence]], list[bytes | None]]
Encode = Callable[[Any], dict[ImageKey, torch.Tensor]]


@pytest.fixture(scope="module")
def loaded() -> tuple[Engine, ModelInfo]:
    return build_engine(EngineConfig(TINY, precision="fp32", device="cpu", kv_cache_bytes=64 << 20))


@pytest.fixture(scope="module")
def reference() -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    model.train(False)
    return model


def text(name: str, token_ids: list[int]) -> Sequence:
    return Sequence(seq_id=name, prompt_ids=token_ids, max_new_tokens=1, is_embedding=True)


def image(name: str, tile: NDArray[np.uint8], info: ModelInfo, *, priority: int = 0) -> Sequence:
    return Sequence(
        seq_id=name,
        prompt_ids=[info.image_token_id] * info.tokens_per_tile,
        max_new_tokens=1,
        images=[ImageSpan(0, info.tokens_per_tile, name)],
        pixels=[tile.tobytes()],
        is_embedding=True,
        priority=priority,
    )


def random_tile(seed: int, info: ModelInfo) -> NDArray[np.uint8]:
    shape = (info.image_side, info.image_side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def vector_of(outputs: list[StepOutput]) -> NDArray[np.float32]:
    (output,) = outputs
    assert output.finish == "stop" and output.token_id is None and output.error is None
    return np.frombuffer(output.vector, "<f4")


@torch.inference_mode()
def last_state(reference: LlavaForConditionalGeneration, token_ids: list[int]) -> NDArray[np.float32]:
    output = reference(input_ids=torch.tensor([token_ids]), output_hidden_states=True)
    state: torch.Tensor = output.hidden_states[-1][0, -1]
    return np.asarray((state / state.norm()).numpy())


@torch.inference_mode()
def mean_feature(reference: LlavaForConditionalGeneration, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    features: Any = reference.get_image_features(pixel_values=normalized(tile[None]))
    features = getattr(features, "pooler_output", features)
    mean = features[0].mean(0)
    return np.asarray((mean / mean.norm()).numpy())


def test_embeddings_computed_with_a_chat_equal_those_of_transformers(
    loaded: tuple[Engine, ModelInfo], reference: LlavaForConditionalGeneration
) -> None:
    engine, info = loaded
    rng = np.random.default_rng(1)
    prompts = {f"text {n}": [1, *rng.integers(3, 300, n).tolist()] for n in (1, 7, 200)}
    tiles = {f"image {n}": random_tile(n, info) for n in range(3)}
    chat = draw_prompt(rng, info, num_images=1)
    outputs = collect_outputs(
        engine,
        sequence_of(chat, "chat", info.tokens_per_tile),
        *(text(name, token_ids) for name, token_ids in prompts.items()),
        *(image(name, tile, info) for name, tile in tiles.items()),
    )
    for name, prompt_ids in prompts.items():
        expected = last_state(reference, prompt_ids)
        np.testing.assert_allclose(vector_of(outputs[name]), expected, atol=TOLERANCE)
    for name, tile in tiles.items():
        np.testing.assert_allclose(vector_of(outputs[name]), mean_feature(reference, tile), atol=TOLERANCE)
    token_ids = [output.token_id for output in outputs["chat"]]
    assert token_ids == reference_output(reference, chat, len(token_ids))


def test_a_vector_is_normalized_only_on_request(
    loaded: tuple[Engine, ModelInfo], reference: LlavaForConditionalGeneration
) -> None:
    engine, info = loaded
    sequences = [text("text", [1, 40, 50]), image("image", random_tile(4, info), info)]
    raw = [text("raw text", [1, 40, 50]), image("raw image", random_tile(4, info), info)]
    for sequence in raw:
        sequence.is_normalized = False
    outputs = collect_outputs(engine, *sequences, *raw)
    for name in ("text", "image"):
        unit, unnormalized = vector_of(outputs[name]), vector_of(outputs[f"raw {name}"])
        assert abs(np.linalg.norm(unnormalized) - 1) > 0.01
        np.testing.assert_allclose(unnormalized / np.linalg.norm(unnormalized), unit, atol=TOLERANCE)
    with torch.inference_mode():
        states = reference(input_ids=torch.tensor([[1, 40, 50]]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(vector_of(outputs["raw text"]), states[-1][0, -1].numpy(), atol=1e-3)


def test_a_text_in_the_prefix_cache_gets_the_same_vector(loaded: tuple[Engine, ModelInfo]) -> None:
    engine, _ = loaded
    token_ids = [1, *range(10, 110)]
    first = collect_outputs(engine, text("first", token_ids))["first"]
    again = collect_outputs(engine, text("again", token_ids))["again"]
    assert again[0].num_cached_tokens == len(token_ids) - 1 > first[0].num_cached_tokens
    np.testing.assert_allclose(vector_of(again), vector_of(first), atol=1e-5)


def test_texts_with_different_endings_have_different_vectors(
    loaded: tuple[Engine, ModelInfo],
) -> None:
    engine, _ = loaded
    outputs = collect_outputs(engine, text("one", [1, 10, 11]), text("other", [1, 10, 12]))
    assert vector_of(outputs["one"]) @ vector_of(outputs["other"]) < 0.999


def test_a_cached_image_is_embedded_without_encoding(loaded: tuple[Engine, ModelInfo]) -> None:
    engine, info = loaded
    tile = random_tile(9, info)
    first = collect_outputs(engine, image("seen", tile, info))["seen"]
    num_encoded = engine.stats().num_encoded_images_total
    assert collect_outputs(engine, image("seen", tile, info))["seen"] == first
    assert engine.stats().num_encoded_images_total == num_encoded


def test_image_embeddings_respect_the_token_budget_and_use_no_blocks(
    loaded: tuple[Engine, ModelInfo],
) -> None:
    engine, info = loaded
    tiles = [image(f"p{n}", random_tile(20 + n, info), info, priority=int(n == 7)) for n in range(8)]
    for each in tiles:
        engine.add(each)
    assert engine.stats().num_waiting == 8
    engine._image_embeddings._max_tokens = 3 * info.tokens_per_tile
    assert [output.seq_id for output in engine.step()] == ["p7", "p0", "p1"]
    engine.abort("p2")
    assert [output.seq_id for output in engine.step()] == ["p3", "p4", "p5"]
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    assert [output.seq_id for output in engine.step()] == ["p6"]
    assert engine.num_sequences == 0


def test_images_are_embedded_one_by_one_after_running_out_of_memory(
    loaded: tuple[Engine, ModelInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, info = loaded
    monkeypatch.setattr(engine._runner, "embed_images", at_most(1, engine._runner.embed_images))
    outputs = collect_outputs(engine, *(image(f"m{n}", random_tile(40 + n, info), info) for n in range(3)))
    assert all(vector_of(each).any() for each in outputs.values())
    monkeypatch.setattr(engine._runner, "embed_images", at_most(0, engine._runner.embed_images))
    (failed,) = collect_outputs(engine, image("m3", random_tile(43, info), info))["m3"]
    assert failed.error is not None
    assert failed.error.code is ErrorCode.INSUFFICIENT_MEMORY and "memory" in failed.error.message


def test_an_image_with_nan_features_fails_and_is_not_cached(
    loaded: tuple[Engine, ModelInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, info = loaded
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "_encode", not_finite(engine._runner._encode))
        (failed,) = collect_outputs(engine, image("nan", random_tile(50, info), info))["nan"]
    assert failed.error is not None and failed.vector == b""
    assert vector_of(collect_outputs(engine, image("nan", random_tile(50, info), info))["nan"]).any()


def at_most(limit: int, embed: Embed) -> Embed:
    """Return a function that raises OutOfMemoryError if it gets more than ``limit`` images."""

    def limited(sequences: Items[Sequence]) -> list[bytes | None]:
        if len(sequences) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(sequences)

    return limited


def not_finite(encode: Encode) -> Encode:
    return lambda images: {key: features * torch.nan for key, features in encode(images).items()}
