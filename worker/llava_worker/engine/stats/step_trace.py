"""A trace of the engine's steps. The file can be opened in https://ui.perfetto.dev or chrome://tracing.

    steps              one bar per step, which contains the phases of the step
    sequences          one lane per sequence, from `add` to its end: waiting, prompt, output
    counters           used and free blocks, running and waiting sequences

The file is a JSON array of events in the Trace Event Format. It is valid after every step, even if the
process is then killed. Times are in microseconds and are measured with a clock that all processes on the
machine share.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llava_worker.engine.core.outputs import EngineStats, StepOutput
from llava_worker.engine.core.sequence import Sequence

__all__ = ["MAX_BYTES", "StepTrace", "TraceFile"]

MAX_BYTES = 512 << 20  # largest file size that viewers can open; about 500,000 steps
_STEPS = 1  # thread ID of the lane that shows the steps
_CLOSE = b"\n]\n"  # overwritten when events are added

_Event: TypeAlias = dict[str, Any]
_State: TypeAlias = Literal["waiting", "prompt", "output"]

logger = logging.getLogger(__name__)


class TraceFile:
    """An append-only file of events. It is locked until the process exits."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Create the file, or truncate it if it exists.

        Raises BlockingIOError if another process is writing a trace to the file, and OSError if the file
        cannot be written.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
        except OSError:
            os.close(self._file)
            raise
        self._end = 0  # offset of the closing bracket, right after the last event
        self._is_full = False

    def write(self, events: list[_Event]) -> None:
        """Write the events with one call. If the file or disk is full, log a warning and stop the trace."""
        if self._is_full or not events:
            return
        text = ",\n" if self._end else "[\n"
        text += ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
        data = text.encode()
        if self._end + len(data) > self._max_bytes:
            self._stop(f"the maximum size of {self._max_bytes} bytes was reached")
            return
        try:
            if os.pwrite(self._file, data + _CLOSE, self._end) < len(data) + len(_CLOSE):
                raise OSError("No space left on device.")
        except OSError as error:
            self._stop(str(error))
            with suppress(OSError):  # truncate the file after the last complete step
                os.pwrite(self._file, _CLOSE, self._end)
                os.ftruncate(self._file, self._end + len(_CLOSE))
        else:
            self._end += len(data)

    def _stop(self, reason: str) -> None:
        self._is_full = True
        logger.warning("trace %s stopped: %s", self._path, reason)


@dataclass
class _Lane:
    """The lane of a sequence that has been added and has not ended yet."""

    key: str
    sequence: Sequence
    state: _State = "waiting"


class StepTrace:
    """Records the events of an engine. All methods must be called in the engine's thread.

    All times are ``time.perf_counter`` values.
    """

    def __init__(self, file: TraceFile, *, process: str) -> None:
        """Start a trace. ``process`` is the name shown for this process in the viewer."""
        self._file = file
        self._pid = os.getpid()
        self._lanes: dict[str, _Lane] = {}
        self._num_lanes = 0
        self._stats = EngineStats()
        self._events: list[_Event] = []  # buffered, but not written yet
        self._add("M", "process_name", 0.0, args={"name": process})
        self._add("M", "thread_name", 0.0, tid=_STEPS, args={"name": "steps"})
        self._flush()

    def added(self, sequence: Sequence, at: float) -> None:
        self._num_lanes += 1
        lane = self._lanes[sequence.seq_id] = _Lane(f"{self._pid}.{self._num_lanes}", sequence)
        args = {
            "prompt tokens": len(sequence.prompt_ids),
            "images": len(sequence.images),
            "resumed output tokens": len(sequence.output_ids),
        }
        self._mark("b", lane, sequence.seq_id, at, args)
        self._mark("b", lane, lane.state, at)
        self._flush()

    def aborted(self, seq_id: str, at: float) -> None:
        """Record that a sequence was aborted. Unknown IDs are ignored."""
        self._end(seq_id, at, "aborted")
        self._flush()

    def phase(self, name: str, began: float, ended: float) -> None:
        self._bar(name, began, ended)

    def stepped(self, began: float, ended: float, outputs: list[StepOutput], stats: EngineStats) -> None:
        """Record a completed step. ``stats`` are the engine's statistics after the step."""
        before, self._stats = self._stats, stats
        sizes = {
            "sequences": stats.num_batched_sequences_total - before.num_batched_sequences_total,
            "prefill tokens": stats.num_prefill_tokens_total - before.num_prefill_tokens_total,
            "decode tokens": stats.num_decode_tokens_total - before.num_decode_tokens_total,
        }
        self._bar("step", began, ended, sizes)
        num_held = stats.num_blocks - stats.num_free_blocks
        self._count("blocks", ended, held=num_held, free=stats.num_free_blocks)
        self._count("sequences", ended, running=stats.num_running, waiting=stats.num_waiting)
        with_output = {output.seq_id for output in outputs if output.token_id is not None or output.error}
        for seq_id, lane in self._lanes.items():
            self._move(lane, "output" if seq_id in with_output else _state_of(lane.sequence), began, ended)
        for output in outputs:
            if output.is_final:
                self._end(output.seq_id, ended, output.error.message if output.error else output.finish or "")
        self._flush()

    def _move(self, lane: _Lane, state: _State, began: float, ended: float) -> None:
        """Change the state of a lane.

        "output" begins when the step ends; all other states begin when the step begins.
        """
        if lane.state == "waiting" and state == "output":
            self._enter(lane, "prompt", began)
        if lane.state != state:
            self._enter(lane, state, ended if state == "output" else began)

    def _enter(self, lane: _Lane, state: _State, at: float) -> None:
        self._mark("e", lane, lane.state, at)
        self._mark("b", lane, state, at)
        lane.state = state

    def _end(self, seq_id: str, at: float, reason: str) -> None:
        lane = self._lanes.pop(seq_id, None)
        if lane is not None:
            self._mark("e", lane, lane.state, at)
            args = {"end": reason, "output tokens": len(lane.sequence.output_ids)}
            self._mark("e", lane, seq_id, at, args)

    def _bar(self, name: str, began: float, ended: float, args: _Event | None = None) -> None:
        length = _us(ended) - _us(began)
        self._add("X", name, began, tid=_STEPS, dur=length, **({"args": args} if args else {}))

    def _mark(self, kind: str, lane: _Lane, name: str, at: float, args: _Event | None = None) -> None:
        self._add(kind, name, at, cat="sequence", id=lane.key, **({"args": args} if args else {}))

    def _count(self, name: str, at: float, **values: int) -> None:
        self._add("C", name, at, args=values)

    def _add(self, kind: str, name: str, at: float, **more: Any) -> None:
        self._events.append({"ph": kind, "name": name, "pid": self._pid, "ts": _us(at), **more})

    def _flush(self) -> None:
        events, self._events = self._events, []
        self._file.write(events)


def _state_of(sequence: Sequence) -> _State:
    """Return the state of a sequence that has no output in this step."""
    if not sequence.block_table:
        return "waiting"
    return "prompt" if sequence.num_computed < len(sequence.prompt_ids) else "output"


def _us(seconds: float) -> int:
    """Convert seconds to microseconds. Truncation never makes disjoint intervals overlap."""
    return int(seconds * 1_000_000)
