"""The engine thread: outputs, rejected sequences, and engines that fail or hang."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest
from llava_wire.messages.event import ErrorCode
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine_thread import EngineThread
from llava_worker.language.tokenizer import ByteTokenizer

from tests.machine_speed import scaled

TIMEOUT_S = 10.0
NUM_TOKENS = 20


class Listener:
    """Receives the engine thread's outputs and failures."""

    def __init__(self) -> None:
        self.outputs: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self.failed = threading.Event()
        self.hung = threading.Event()

    def on_outputs(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            self.outputs.put(output)

    def next_output(self) -> StepOutput:
        return self.outputs.get(timeout=scaled(TIMEOUT_S))

    def outputs_until_end(self, seq_id: str) -> list[StepOutput]:
        collected: list[StepOutput] = []
        while not collected or not collected[-1].is_final:
            output = self.next_output()
            collected += [output] if output.seq_id == seq_id else []
        return collected


def start(
    listener: Listener, engine: EchoEngine | None = None, *, hang_timeout_s: float = 60.0
) -> EngineThread:
    thread = EngineThread(
        engine or EchoEngine(has_faults=True),
        on_outputs=listener.on_outputs,
        on_failure=listener.failed.set,
        on_hang=listener.hung.set,
        hang_timeout_s=hang_timeout_s,
    )
    thread.start()
    return thread


def stop(thread: EngineThread) -> None:
    assert thread.stop(scaled(TIMEOUT_S))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def thread(listener: Listener) -> Iterator[EngineThread]:
    thread = start(listener)
    yield thread
    stop(thread)


def sequence(text: str, seq_id: str = "one") -> Sequence:
    return Sequence(seq_id=seq_id, prompt_ids=ByteTokenizer().encode(text), max_new_tokens=NUM_TOKENS)


def test_idle_engine_runs_no_steps_and_wakes_up_for_the_next_sequence(
    listener: Listener, thread: EngineThread
) -> None:
    for seq_id in ("one", "two"):
        thread.add(sequence("Hi?", seq_id))
        assert len(listener.outputs_until_end(seq_id)) == NUM_TOKENS
    stop(thread)
    assert thread.num_steps == 2 * NUM_TOKENS


class PreparingEngine(EchoEngine):
    """An engine that finishes its preparation after ``num_left`` calls to ``idle``."""

    def __init__(self, num_left: int) -> None:
        super().__init__(has_faults=True)
        self.num_left = num_left
        self.is_prepared = threading.Event()

    def idle(self) -> bool:
        assert not self.num_sequences
        if not self.num_left:
            self.is_prepared.set()
            return False
        self.num_left -= 1
        return True


def test_idle_engine_prepares_until_nothing_is_left_to_prepare(listener: Listener) -> None:
    engine = PreparingEngine(1000)
    thread = start(listener, engine)
    assert engine.is_prepared.wait(scaled(TIMEOUT_S))
    assert engine.num_left == 0
    thread.add(sequence("Hi?"))
    assert len(listener.outputs_until_end("one")) == NUM_TOKENS
    stop(thread)


def test_sequence_is_processed_before_preparation_is_complete(listener: Listener) -> None:
    engine = PreparingEngine(1 << 60)
    thread = start(listener, engine)
    thread.add(sequence("Hi?"))
    assert len(listener.outputs_until_end("one")) == NUM_TOKENS
    stop(thread)
    assert engine.num_left > 0


def test_calls_run_in_the_engines_thread_between_steps(listener: Listener, thread: EngineThread) -> None:
    thread.add(sequence("Hi?"))
    ident = thread.call(threading.get_ident).result(scaled(TIMEOUT_S))
    assert ident == thread.call(threading.get_ident).result(scaled(TIMEOUT_S)) != threading.get_ident()
    assert len(listener.outputs_until_end("one")) == NUM_TOKENS


def test_an_error_of_a_call_is_raised_in_its_caller_and_does_not_stop_the_engine(
    listener: Listener, thread: EngineThread
) -> None:
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0).result(scaled(TIMEOUT_S))
    thread.add(sequence("Hi?"))
    assert len(listener.outputs_until_end("one")) == NUM_TOKENS


def test_a_cancelled_call_is_not_made(listener: Listener, thread: EngineThread) -> None:
    may_continue, calls = threading.Event(), list[int]()
    blocking = thread.call(may_continue.wait)
    assert thread.call(lambda: calls.append(1)).cancel()
    may_continue.set()
    assert blocking.result(scaled(TIMEOUT_S))
    thread.add(sequence("Hi?"))
    assert len(listener.outputs_until_end("one")) == NUM_TOKENS
    assert not calls


class RecordingEngine(EchoEngine):
    """An engine that records the names of its methods and the threads that call them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def bind_thread(self) -> None:
        self.calls.append(("bind_thread", threading.get_ident()))

    def add(self, sequence: Sequence) -> None:
        self.calls.append(("add", threading.get_ident()))
        super().add(sequence)

    def step(self) -> list[StepOutput]:
        self.calls.append(("step", threading.get_ident()))
        return super().step()

    def idle(self) -> bool:
        self.calls.append(("idle", threading.get_ident()))
        return super().idle()


def test_the_engine_is_bound_to_its_thread_before_any_other_call(listener: Listener) -> None:
    engine = RecordingEngine()
    thread = start(listener, engine)
    thread.add(sequence("Hi?"))
    listener.outputs_until_end("one")
    stop(thread)

    names = [name for name, _ in engine.calls]
    assert names[0] == "bind_thread" and {"add", "step", "idle"} < set(names)
    assert len({thread_id for _, thread_id in engine.calls}) == 1


def test_stats_are_updated_after_each_step(listener: Listener) -> None:
    engine = EchoEngine()
    thread = start(listener, engine)
    assert thread.stats.num_steps_total == 0
    thread.add(sequence("Hi?"))
    listener.outputs_until_end("one")
    stop(thread)
    assert thread.stats == engine.stats()
    assert (thread.stats.num_generated_tokens_total, thread.stats.num_running) == (NUM_TOKENS, 0)


def test_rejected_sequence_is_reported_and_the_next_is_processed(
    listener: Listener, thread: EngineThread
) -> None:
    thread.add(sequence("[[refuse]]", "bad"))
    output = listener.next_output()
    assert output.seq_id == "bad" and output.error is not None
    assert output.error.code is ErrorCode.INVALID_REQUEST
    thread.add(sequence("Hi?", "good"))
    assert listener.outputs_until_end("good")


def test_abort_leaves_other_sequences_running(listener: Listener, thread: EngineThread) -> None:
    thread.add(sequence("Hi?", "one"))
    thread.abort("one")
    thread.abort("unknown")
    thread.add(sequence("Hi?", "two"))
    assert listener.outputs_until_end("two")


def test_engine_that_raises_is_reported_and_not_used_again(
    listener: Listener, thread: EngineThread, caplog: pytest.LogCaptureFixture
) -> None:
    thread.add(sequence("[[fail at 3]]"))
    assert listener.failed.wait(scaled(TIMEOUT_S))
    stop(thread)
    assert thread.num_steps == 3
    assert "instructed the echo engine to fail" in caplog.text


def test_stop_waits_for_the_current_step(listener: Listener, thread: EngineThread) -> None:
    thread.add(sequence("Hi?"))
    stop(thread)
    assert not listener.failed.is_set()


class HangingEngine(EchoEngine):
    """An engine whose steps block until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.is_released = threading.Event()

    def step(self) -> list[StepOutput]:
        self.is_released.wait()
        return super().step()


def test_step_that_hangs_is_reported_and_an_idle_engine_is_not(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    idle_listener = Listener()
    idle_thread = start(idle_listener, hang_timeout_s=0.05)
    engine = HangingEngine()
    thread = start(listener, engine, hang_timeout_s=0.2)
    thread.add(sequence("Hi?"))
    assert listener.hung.wait(scaled(TIMEOUT_S))
    assert "current step exceeded" in caplog.text
    assert not thread.stop(0.0)
    engine.is_released.set()
    stop(thread)
    assert not idle_listener.hung.is_set()
    stop(idle_thread)
