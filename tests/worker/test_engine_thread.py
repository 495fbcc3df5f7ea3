"""The engine's thread: progress, refusals, and loud ends for an engine that breaks or hangs."""

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

WAIT_S = 10.0  # a bound, not an expectation


class Listener:
    def __init__(self) -> None:
        self.outputs: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self.failed = threading.Event()
        self.hung = threading.Event()

    def take(self, outputs: list[StepOutput]) -> None:
        for item in outputs:
            self.outputs.put(item)

    def until_end(self, seq_id: str) -> list[StepOutput]:
        found: list[StepOutput] = []
        while not found or not found[-1].is_final:
            item = self.outputs.get(timeout=WAIT_S)
            found += [item] if item.seq_id == seq_id else []
        return found


def start(
    listener: Listener, engine: EchoEngine | None = None, *, hang_timeout_s: float = 60.0
) -> EngineThread:
    thread = EngineThread(
        engine or EchoEngine(has_faults=True),
        on_outputs=listener.take,
        on_failure=listener.failed.set,
        on_hang=listener.hung.set,
        hang_timeout_s=hang_timeout_s,
    )
    thread.start()
    return thread


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def thread(listener: Listener) -> Iterator[EngineThread]:
    thread = start(listener)
    yield thread
    thread.stop(WAIT_S)


def sequence(text: str, seq_id: str = "one") -> Sequence:
    return Sequence(seq_id=seq_id, prompt_ids=ByteTokenizer().encode(text), max_new_tokens=20)


def test_a_sequence_is_answered_to_its_end(listener: Listener, thread: EngineThread) -> None:
    thread.add(sequence("Hi?"))
    assert len(listener.until_end("one")) == 20


def test_an_idle_engine_makes_no_steps_and_wakes_for_the_next_sequence(
    listener: Listener, thread: EngineThread
) -> None:
    thread.add(sequence("Hi?", "one"))
    listener.until_end("one")
    thread.add(sequence("Hi?", "two"))
    listener.until_end("two")
    thread.stop(WAIT_S)
    assert thread.num_steps == 40


class Preparing(EchoEngine):
    """Has so much to prepare."""

    def __init__(self, num_left: int) -> None:
        super().__init__(has_faults=True)
        self.num_left = num_left
        self.rested = threading.Event()

    def idle(self) -> bool:
        assert not self.num_sequences
        if not self.num_left:
            self.rested.set()
            return False
        self.num_left -= 1
        return True


def test_an_idle_engine_prepares_until_nothing_is_left_and_then_sleeps(listener: Listener) -> None:
    engine = Preparing(1000)
    thread = start(listener, engine)
    assert engine.rested.wait(WAIT_S)
    assert engine.num_left == 0
    thread.add(sequence("Hi?"))
    assert len(listener.until_end("one")) == 20
    assert thread.stop(WAIT_S)


def test_who_comes_while_an_engine_prepares_is_served_first(listener: Listener) -> None:
    engine = Preparing(1 << 60)
    thread = start(listener, engine)
    thread.add(sequence("Hi?"))
    assert len(listener.until_end("one")) == 20
    assert thread.stop(WAIT_S)
    assert engine.num_left > 0


def test_statistics_are_those_of_the_engine_after_its_last_step(listener: Listener) -> None:
    engine = EchoEngine()
    thread = start(listener, engine)
    assert thread.stats.num_steps_total == 0
    thread.add(sequence("Hi?"))
    listener.until_end("one")
    assert thread.stop(WAIT_S)
    assert thread.stats == engine.stats()
    assert (thread.stats.num_generated_tokens_total, thread.stats.num_running) == (20, 0)


def test_a_refused_sequence_is_reported_and_the_next_one_served(
    listener: Listener, thread: EngineThread
) -> None:
    thread.add(sequence("[[refuse]]", "bad"))
    rejection = listener.outputs.get(timeout=WAIT_S)
    assert rejection.seq_id == "bad" and rejection.error is not None
    assert rejection.error.code is ErrorCode.INVALID_REQUEST
    thread.add(sequence("Hi?", "good"))
    assert listener.until_end("good")


def test_an_aborted_sequence_leaves_the_others_running(listener: Listener, thread: EngineThread) -> None:
    thread.add(sequence("Hi?", "one"))
    thread.abort("one")
    thread.abort("unknown")
    thread.add(sequence("Hi?", "two"))
    assert listener.until_end("two")


def test_an_engine_that_raises_is_reported_and_never_used_again(
    listener: Listener, thread: EngineThread, caplog: pytest.LogCaptureFixture
) -> None:
    thread.add(sequence("[[fail at 3]]"))
    assert listener.failed.wait(WAIT_S)
    assert thread.stop(WAIT_S)
    assert thread.num_steps == 3
    assert "asked to fail" in caplog.text


def test_a_stop_waits_for_the_step_in_hand(listener: Listener, thread: EngineThread) -> None:
    thread.add(sequence("Hi?"))
    assert thread.stop(WAIT_S)
    assert not listener.failed.is_set()


class StuckEngine(EchoEngine):
    """A step does not return before it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def step(self) -> list[StepOutput]:
        self.released.wait()
        return super().step()


def test_a_step_that_does_not_return_is_noticed(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    engine = StuckEngine()
    thread = start(listener, engine, hang_timeout_s=0.05)
    thread.add(sequence("Hi?"))
    assert listener.hung.wait(WAIT_S)
    assert "one step for more than" in caplog.text
    assert not thread.stop(0.0)
    engine.released.set()
    assert thread.stop(WAIT_S)


def test_an_engine_that_waits_for_work_does_not_hang(listener: Listener) -> None:
    thread = start(listener, hang_timeout_s=0.05)
    assert not listener.hung.wait(0.2)
    assert thread.stop(WAIT_S)
