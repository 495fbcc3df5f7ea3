"""A model is loaded and its engine is run in the same thread, which exits when the engine stops."""

from __future__ import annotations

import queue
import threading

import pytest
from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine_thread import EngineThread
from llava_worker.model_thread import ENGINE_THREAD, ModelThread
from llava_worker.open_model import StartupError, open_in_thread
from llava_worker.settings import load_settings

from tests.machine_speed import scaled

TIMEOUT_S = 20.0


def engine_threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name == ENGINE_THREAD}


def test_calls_run_in_one_thread_in_order_and_return_results_and_errors() -> None:
    thread, numbers = ModelThread(), list[int]()
    futures = [thread.submit(lambda number=number: numbers.append(number)) for number in range(5)]  # type: ignore[misc]
    failed = thread.submit(lambda: 1 // 0)
    idents = [thread.submit(threading.get_ident) for _ in range(2)]

    with pytest.raises(ZeroDivisionError):
        failed.result(scaled(TIMEOUT_S))
    assert len({ident.result(scaled(TIMEOUT_S)) for ident in idents} - {threading.get_ident()}) == 1
    assert numbers == [0, 1, 2, 3, 4] and all(future.done() for future in futures)
    assert not thread.join(0)
    thread.close()
    assert thread.join(scaled(TIMEOUT_S))


def test_the_thread_that_loads_a_model_runs_its_engine_and_exits_when_it_stops() -> None:
    before = engine_threads()
    model = open_in_thread(load_settings(["--model", "echo"])).result(scaled(TIMEOUT_S))
    [loader] = engine_threads() - before
    outputs: queue.SimpleQueue[tuple[int, list[StepOutput]]] = queue.SimpleQueue()
    engine = EngineThread(
        model.engine,
        on_outputs=lambda each: outputs.put((threading.get_ident(), each)),
        on_failure=lambda: None,
        hang_timeout_s=60.0,
        thread=model.thread,
    )
    engine.start()
    engine.add(Sequence(seq_id="one", prompt_ids=[65], max_new_tokens=1))

    assert outputs.get(timeout=scaled(TIMEOUT_S))[0] == loader
    assert engine.stop(scaled(TIMEOUT_S))
    assert engine_threads() == before


def test_a_thread_that_fails_to_load_a_model_exits() -> None:
    before = engine_threads()
    loading = open_in_thread(load_settings(["--model", "./missing"]))
    with pytest.raises(StartupError, match="not a folder"):
        loading.result(scaled(TIMEOUT_S))
    for thread in threading.enumerate():
        if thread.name == ENGINE_THREAD and thread.ident not in before:
            thread.join(scaled(TIMEOUT_S))
    assert engine_threads() == before
