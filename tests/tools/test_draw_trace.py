"""A timeline becomes a picture, also one whose process died while it wrote."""

from __future__ import annotations

from pathlib import Path

import draw_trace
import pytest
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence
from llava_worker.engine.stats.step_trace import StepTrace, TraceFile
from llava_worker.telemetry.step_timeline import TracedEngine
from PIL import Image


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Three answers, the last of them cut short."""
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


def test_a_trace_is_drawn_whole_or_in_part(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ((), (0.0, 0.1)):
        out = trace.with_suffix(".png")
        assert run(monkeypatch, trace, out, *part) == 0
        with Image.open(out) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_a_torn_trace_is_read_up_to_its_last_whole_event(trace: Path) -> None:
    whole = draw_trace.read(trace)
    trace.write_text(trace.read_text().removesuffix("\n]\n") + ',\n{"ph":"X","na')
    assert draw_trace.read(trace) == whole


def test_a_trace_without_a_step_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StepTrace(TraceFile(tmp_path / "empty.json"), process="test")
    assert run(monkeypatch, tmp_path / "empty.json", tmp_path / "out.png") == 1
    assert run(monkeypatch, tmp_path / "empty.json") == 2
    assert not (tmp_path / "out.png").exists()
