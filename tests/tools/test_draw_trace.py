"""Tests for plotting step traces, including the incomplete trace of a crashed worker."""

from __future__ import annotations

from pathlib import Path

import draw_trace
import pytest
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence
from llava_worker.engine.stats.step_trace import StepTrace, TraceFile
from llava_worker.telemetry.traced_engine import TracedEngine
from PIL import Image


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a trace with three sequences, the last of which is unfinished."""
    path = tmp_path / "trace.json"
    engine = TracedEngine(EchoEngine(max_sequences=2), StepTrace(TraceFile(path), process="test"))
    for number in range(3):
        engine.add(Sequence(seq_id=str(number), prompt_ids=[72, number], max_new_tokens=5))
    for _ in range(8):
        engine.step()
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["draw_trace.py", *map(str, arguments)])
    return draw_trace.main()


def test_all_or_part_of_a_trace_is_plotted(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ((), (0.0, 0.1)):
        out = trace.with_suffix(".png")
        assert run(monkeypatch, trace, out, *part) == 0
        with Image.open(out) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_an_incomplete_trace_is_read_up_to_its_last_complete_event(trace: Path) -> None:
    complete = draw_trace.read(trace)
    trace.write_text(trace.read_text().removesuffix("\n]\n") + ',\n{"ph":"X","na')
    assert draw_trace.read(trace) == complete


def test_a_trace_without_steps_is_not_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StepTrace(TraceFile(tmp_path / "empty.json"), process="test")
    assert run(monkeypatch, tmp_path / "empty.json", tmp_path / "out.png") == 1
    assert run(monkeypatch, tmp_path / "empty.json") == 2
    assert not (tmp_path / "out.png").exists()
