"""A model can be used before its weights are stored, and continues with the stored ones."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.loading import unstored_weights
from llava_worker.model.loading.packed_file import write_file
from llava_worker.model.loading.unstored_weights import UnstoredWeights
from llava_worker.model.loading.weights_cache import WeightsCache

from tests.waiting import wait_until
from tests.worker.checkpoints import Prompt
from tests.worker.engine.tiny_model import TINY, sequence_of
from tests.worker.model.load_model import assert_same_weights, load_model
from tests.worker.model.loading.weights_cache.loaded import Loaded, stored
from tests.worker.model.loading.weights_cache.loading_process import Program, opens

PROMPT = Prompt([1, *range(300, 340)])


def unstored(loaded: Loaded) -> UnstoredWeights:
    assert loaded.weights.unstored is not None
    return loaded.weights.unstored


def generate(engine: Engine) -> list[int | None]:
    engine.add(sequence_of(PROMPT, "one", 1))
    token_ids: list[int | None] = []
    while engine.num_sequences:
        token_ids += [output.token_id for output in engine.step()]
    return token_ids


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_an_engine_that_has_run_steps_uses_only_the_stored_weights_afterwards(
    cache: WeightsCache, precision: str
) -> None:
    config = EngineConfig(
        TINY, precision=precision, device="cpu", kv_cache_bytes=8 << 20, weights_cache=cache.folder
    )
    engine, info = build_engine(config, defers_store=True)
    weights = info.unstored_weights
    assert weights is not None and not stored(cache)
    expected = generate(engine)

    mapped = weights.store()
    assert mapped is not None
    previous = weights.use(mapped)
    for tensor in previous:
        tensor.zero_()  # a step that still read it would generate other tokens

    assert generate(engine) == expected
    assert len(stored(cache)) == 1


def test_without_deferral_an_engine_is_built_with_stored_weights(cache: WeightsCache) -> None:
    _, info = build_engine(EngineConfig(TINY, device="cpu", weights_cache=cache.folder))
    assert info.unstored_weights is None
    assert len(stored(cache)) == 1


def test_another_process_waits_until_the_weights_are_stored(folder: Path, cache: WeightsCache) -> None:
    loaded = Loaded(folder, cache, "int8", is_stored=False)
    (lock,) = cache.folder.glob("*.lock")
    with ExitStack() as stack:
        waiting = Program(folder, cache.folder)
        stack.callback(waiting.close)
        waiting.send()
        wait_until(lambda: opens(waiting.process.pid, lock))
        assert not stored(cache)
        assert unstored(loaded).store_now()
        assert waiting.receive() == "loaded\n"
        waiting.send()
        assert not json.loads(waiting.receive())["is_read"]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_another_process_continues_if_the_weights_are_not_stored(
    folder: Path, cache: WeightsCache, is_cancelled: bool
) -> None:
    loaded = Loaded(folder, cache, "int8", is_stored=False)
    if is_cancelled:
        unstored(loaded).cancel()
        assert unstored(loaded).store() is None
    else:
        del loaded
    assert Loaded(folder, cache, "int8").is_read
    assert len(stored(cache)) == 1


def test_a_store_that_is_cancelled_while_it_writes_leaves_no_file(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(folder, cache, "int8", is_stored=False)
    weights = unstored(loaded)
    is_writing = threading.Event()

    def write_until_cancelled(path: Path, parameters, key: bytes, on_chunk) -> None:  # type: ignore[no-untyped-def]
        write_file(path, parameters, key, on_chunk)
        is_writing.set()
        while True:  # as if the file had more chunks
            on_chunk()

    monkeypatch.setattr(unstored_weights, "write_file", write_until_cancelled)
    thread = threading.Thread(target=weights.store)
    thread.start()
    assert is_writing.wait(60)
    weights.cancel()
    thread.join()
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]
    assert_same_weights(loaded.model, load_model(folder, "int8"))


def test_weights_are_stored_but_stay_in_private_memory_without_enough_free_memory(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(unstored_weights, "available_bytes", lambda device: 1000)
    loaded = Loaded(folder, cache, "int8")
    assert loaded.mapped_bytes == 0 and "too little free memory" in caplog.text
    assert_same_weights(loaded.model, load_model(folder, "int8"))
    assert not Loaded(folder, cache, "int8").is_read
