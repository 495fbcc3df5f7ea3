"""Tests that the step trace contains the right events and that its file is always valid."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import EngineInterface, Sequence, StepOutput
from llava_worker.engine.core.step_timer import PHASES
from llava_worker.engine.stats.step_trace import StepTrace, TraceFile
from llava_worker.open_model import StartupError, open_model
from llava_worker.settings import load_settings
from llava_worker.telemetry.traced_engine import TracedEngine

from tests.file_size_limit import file_size_limit
from tests.worker.checkpoints import random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence

LENGTH = 12

MakeTraced = Callable[..., TracedEngine]
MakeSequences = Callable[[], list[Sequence]]


@dataclass
class Lane:
    """The lane of a sequence: its states in order, and the arguments of its end event."""

    states: list[str] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)


def read(path: Path) -> list[dict[str, Any]]:
    events = json.loads(path.read_text())
    assert isinstance(events, list)
    return events


def lanes_in(events: list[dict[str, Any]]) -> dict[str, Lane]:
    """Return the lanes keyed by sequence ID.

    Fails if begin and end events are not properly nested or if times decrease.
    """
    open_bars: dict[str, list[str]] = defaultdict(list)
    last: dict[str, int] = defaultdict(int)
    lanes: dict[str, Lane] = {}
    for event in events:
        if event["ph"] not in "be":
            continue
        bars = open_bars[event["id"]]
        assert event["ts"] >= last[event["id"]]
        last[event["id"]] = event["ts"]
        if event["ph"] == "b":
            bars.append(event["name"])
            lane = lanes.setdefault(bars[0], Lane())
            lane.states += bars[1:]
            assert len(bars) <= 2
        else:
            assert bars.pop() == event["name"]
            if not bars:
                lanes[event["name"]].ends.append(event["args"])
    return lanes


def bars_in(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the steps and the phases, both in chronological order."""
    bars = sorted((event for event in events if event["ph"] == "X"), key=lambda bar: (bar["ts"], -bar["dur"]))
    assert {bar["name"] for bar in bars} <= {"step", *PHASES}
    return [bar for bar in bars if bar["name"] == "step"], [bar for bar in bars if bar["name"] != "step"]


def drive(engine: EngineInterface, sequences: list[Sequence]) -> dict[str, list[int]]:
    output_ids: dict[str, list[int]] = {sequence.seq_id: [] for sequence in sequences}
    for sequence in sequences:
        engine.add(sequence)
    while engine.num_sequences:
        for output in engine.step():
            output_ids[output.seq_id] += [output.token_id] if output.token_id is not None else []
    return output_ids


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


@pytest.fixture
def sequences(make_sequence: MakeSequence) -> MakeSequences:
    """Return a function that makes twelve sequences, some of them with images."""

    def make() -> list[Sequence]:
        rng = np.random.default_rng(3)
        prompts = [random_prompt(rng, num_images=index % 3) for index in range(12)]
        return [
            make_sequence(prompt, seq_id=f"s{index}", max_new_tokens=LENGTH)
            for index, prompt in enumerate(prompts)
        ]

    return make


@pytest.fixture
def make_traced(make_engine: MakeEngine, path: Path) -> MakeTraced:
    def make(**options: Any) -> TracedEngine:
        engine = make_engine(eos_ids=frozenset(), **options)
        return TracedEngine(engine, StepTrace(TraceFile(path), process="test"), engine.timer)

    return make


def test_a_trace_does_not_change_the_outputs(
    make_engine: MakeEngine, make_traced: MakeTraced, sequences: MakeSequences
) -> None:
    plain = drive(make_engine(eos_ids=frozenset(), num_blocks=26), sequences())
    assert drive(make_traced(num_blocks=26), sequences()) == plain


def test_every_step_is_a_bar_with_its_phases_and_bars_do_not_overlap(
    make_traced: MakeTraced, sequences: MakeSequences, path: Path
) -> None:
    engine = make_traced()
    drive(engine, sequences())
    steps, phases = bars_in(read(path))

    stats = engine.stats()
    assert len(steps) == stats.num_steps_total
    assert sum(step["args"]["sequences"] for step in steps) == stats.num_batched_sequences_total
    assert sum(step["args"]["prefill tokens"] for step in steps) == stats.num_prefill_tokens_total
    assert sum(step["args"]["decode tokens"] for step in steps) == stats.num_decode_tokens_total
    for bars in (steps, phases):
        for bar, following in zip(bars, bars[1:], strict=False):
            assert bar["ts"] + bar["dur"] <= following["ts"]
    left = iter(phases)
    for step in steps:
        inside = [
            bar["name"]
            for bar in phases
            if step["ts"] <= bar["ts"] and bar["ts"] + bar["dur"] <= step["ts"] + step["dur"]
        ]
        assert inside[:2] == ["schedule", "prepare"]
        assert inside[-1] == "postprocess"
        assert [next(left)["name"] for _ in inside] == inside
    assert next(left, None) is None


def test_every_sequence_has_a_lane_from_add_to_end(
    make_traced: MakeTraced, sequences: MakeSequences, path: Path
) -> None:
    added = sequences()
    drive(make_traced(max_num_sequences=4), added)
    lanes = lanes_in(read(path))

    assert lanes.keys() == {sequence.seq_id for sequence in added}
    for lane in lanes.values():
        assert lane.states == ["waiting", "prompt", "output"]
        assert lane.ends == [{"end": "length", "output tokens": LENGTH}]


def test_a_preempted_sequence_returns_to_the_waiting_state(
    make_traced: MakeTraced, sequences: MakeSequences, path: Path
) -> None:
    engine = make_traced(num_blocks=26)
    drive(engine, sequences())
    states = [lane.states for lane in lanes_in(read(path)).values()]

    num_returns = sum(seen.count("waiting") - 1 for seen in states)
    assert num_returns == engine.stats().num_preemptions_total > 0


def test_aborted_rejected_and_complete_sequences_leave_no_lane_open(
    make_traced: MakeTraced, sequences: MakeSequences, path: Path
) -> None:
    engine = make_traced(max_num_sequences=1)
    running, waiting, complete, twice, *_ = sequences()
    complete.output_ids = [7] * LENGTH
    twice.seq_id = running.seq_id
    for sequence in (running, waiting, complete):
        engine.add(sequence)
    with pytest.raises(ValueError, match="already"):
        engine.add(twice)
    engine.step()
    for seq_id in (running.seq_id, waiting.seq_id, "unknown"):
        engine.abort(seq_id)

    ends = {name: [args["end"] for args in lane.ends] for name, lane in lanes_in(read(path)).items()}
    assert ends == {
        running.seq_id: ["aborted"],
        waiting.seq_id: ["aborted"],
        complete.seq_id: ["length"],
    }


def test_the_file_is_valid_after_every_step(
    make_traced: MakeTraced, sequences: MakeSequences, path: Path
) -> None:
    engine = make_traced()
    for sequence in sequences():
        engine.add(sequence)
    for num_steps in range(1, 15):
        engine.step()
        assert len(bars_in(read(path))[0]) == num_steps


class BrokenEngine(EchoEngine):
    def step(self) -> list[StepOutput]:
        raise RuntimeError("broken")


def test_a_failed_step_appears_in_the_trace(path: Path) -> None:
    engine = TracedEngine(BrokenEngine(), StepTrace(TraceFile(path), process="test"))
    with pytest.raises(RuntimeError, match="broken"):
        engine.step()
    assert [event["name"] for event in read(path) if event["ph"] == "X"] == ["step"]


def echoed(path: Path, *, max_bytes: int = 1 << 20) -> dict[str, list[int]]:
    """Run one sequence in the echo engine with a trace. Return the outputs."""
    engine = TracedEngine(EchoEngine(), StepTrace(TraceFile(path, max_bytes=max_bytes), process="test"))
    return drive(engine, [Sequence(seq_id="one", prompt_ids=[72, 105], max_new_tokens=50)])


def test_a_trace_stops_at_its_size_limit_and_the_engine_continues(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(echoed(path, max_bytes=5000)["one"]) == 50
    assert 4000 < path.stat().st_size <= 5000 + len("\n]\n")
    assert 0 < len(bars_in(read(path))[0]) < 50
    assert [record.message for record in caplog.records if "5000 bytes" in record.message] != []


def test_a_full_disk_stops_the_trace_but_not_the_engine(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = echoed(path)
    with file_size_limit(3001):
        assert echoed(path.with_name("short.json")) == reference
        full = TraceFile(path.with_name("full.json"))
        full.write([{"name": "x" * (3001 - len('[\n{"name":""}\n]\n'))}])
        full.write([{"name": "never"}])
    assert 2000 < path.with_name("short.json").stat().st_size < 3001
    assert 0 < len(bars_in(read(path.with_name("short.json")))[0]) < 50
    assert len(read(path.with_name("full.json"))) == 1
    assert len([record for record in caplog.records if "stopped" in record.message]) == 2


def test_without_the_option_there_is_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert type(open_model(load_settings(["--model", "echo"])).engine) is EchoEngine
    assert list(tmp_path.iterdir()) == []


def test_the_process_id_is_inserted_into_the_trace_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setenv("LLAVA_TRACE_STEPS", str(tmp_path / "t-{pid}.json"))
    assert isinstance(open_model(load_settings(["--model", "echo"])).engine, TracedEngine)
    assert [path.name for path in tmp_path.iterdir()] == [f"t-{os.getpid()}.json"]


@pytest.mark.parametrize("where", ["missing/trace.json", "taken.json", "/dev/null"])
def test_a_trace_file_that_cannot_be_written_is_rejected(tmp_path: Path, where: str) -> None:
    TraceFile(tmp_path / "taken.json").write([{"name": "kept"}])
    with pytest.raises(StartupError, match=r"could not be written: .*\{pid\}"):
        open_model(load_settings(["--model", "echo", "--trace-steps", str(tmp_path / where)]))
    assert read(tmp_path / "taken.json") == [{"name": "kept"}]


def test_the_real_engine_writes_its_phases_to_the_trace(path: Path) -> None:
    flags = ["--model", "tiny", "--device", "cpu", "--trace-steps", str(path)]
    engine = open_model(load_settings(flags)).engine
    drive(engine, [Sequence(seq_id="one", prompt_ids=[1, 5, 9], max_new_tokens=3)])
    steps, phases = bars_in(read(path))
    assert len(steps) == engine.stats().num_steps_total > 0
    assert {bar["name"] for bar in phases} == {"schedule", "prepare", "forward", "sample", "postprocess"}
