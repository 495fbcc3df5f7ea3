"""A model folder is untrusted: code in it is never executed, and a hostile file ends in one sentence.

The limits of CPU time and memory apply to the growth over a process that has imported torch.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from llava_worker.open_model import StartupError, open_model
from llava_worker.settings import load_settings

from tests.security.hostile_checkpoints import CASES, HARMLESS, MAX_GROWN_BYTES, TINY, change_json, copy_tiny
from tests.security.worker_starts import LOADED, REJECTED, Start, WorkerStarts

MAX_CPU_S = 5.0
MAX_LINE = 4500  # characters
NUM_RANDOM, NUM_EXHAUSTIVE = 30, 1000


@pytest.fixture(scope="module")
def starts() -> Iterator[WorkerStarts]:
    with WorkerStarts() as starts:
        yield starts


def require_one_sentence(start: Start, max_grown_bytes: int = MAX_GROWN_BYTES) -> str:
    """Return the error of a worker that exited with status 1, without much work.

    The error must be a single line.
    """
    assert "Traceback" not in start.output, start.output
    assert start.status == REJECTED, start.output
    assert len(start.errors) == 1 and len(start.errors[0]) <= MAX_LINE, start.output
    require_little_work(start, max_grown_bytes)
    return start.errors[0]


def require_little_work(start: Start, max_grown_bytes: int = MAX_GROWN_BYTES) -> None:
    assert start.cpu_s < MAX_CPU_S, start
    assert start.grown_bytes < max_grown_bytes, start


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_checkpoint_ends_in_one_sentence(name: str, starts: WorkerStarts, tmp_path: Path) -> None:
    folder, case = copy_tiny(tmp_path / "model"), CASES[name]
    case.change(folder)

    start = starts.start(folder, *case.flags, log=tmp_path / "log")

    error = require_one_sentence(start, case.max_grown_bytes)
    assert re.search(case.error, error), error


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_change_has_no_effect(name: str, starts: WorkerStarts, tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model")
    HARMLESS[name](folder)

    start = starts.start(folder, log=tmp_path / "log")

    assert start.status == LOADED, start.output
    require_little_work(start)


def test_a_folder_without_read_permission_ends_in_one_sentence(starts: WorkerStarts, tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "model")
    folder.chmod(0)

    error = require_one_sentence(starts.start(folder, log=tmp_path / "log", is_unprivileged=True))

    assert "Permission denied" in error
    assert str(folder) in error


NUMBERS = [0, -1, 1, 2, 3, 7, 10**3, 10**6, 10**9, 10**30, 0.5, -0.0, 1e-300, 1e300]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*NUMBERS, float("inf"), float("nan"), None, True, "", "7", "llama", [], {}, [[]]]),
    st.lists(st.sampled_from(NUMBERS), max_size=4),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")


def _paths(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


FIELDS = [(file, path) for file in FILES for path in _paths(json.loads((TINY / file).read_text()))]
MORE_FIELDS = [
    *(
        f"text_config.{name}"
        for name in ("sliding_window", "rope_scaling", "layer_types", "use_sliding_window")
    ),
    *(
        f"text_config.rope_scaling.{name}"
        for name in ("rope_type", "factor", "beta_fast", "high_freq_factor")
    ),
    *("image_grid_pinpoints", "image_aspect_ratio", "mm_vision_tower", "projector_depth"),
]
CHANGES = st.lists(
    st.tuples(st.sampled_from([*FIELDS, *(("config.json", path) for path in MORE_FIELDS)]), VALUES),
    min_size=1,
    max_size=3,
)


def test_random_changes_either_work_or_end_in_one_sentence(
    starts: WorkerStarts, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """``--exhaustive`` runs 1,000 examples instead of 30."""
    num = NUM_EXHAUSTIVE if pytestconfig.getoption("exhaustive") else NUM_RANDOM
    folders = (tmp_path / str(index) for index in range(1_000_000))

    @settings(
        max_examples=num,
        deadline=None,
        derandomize=num == NUM_RANDOM,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(CHANGES)
    def check(changes: list[tuple[tuple[str, str], Any]]) -> None:
        folder = copy_tiny(next(folders))
        for (file, path), value in changes:
            _change_if_possible(folder, file, path, value)
        start = starts.start(folder, log=tmp_path / "log")
        if start.status == LOADED:
            require_little_work(start)
        else:
            require_one_sentence(start)

    check()


def _change_if_possible(folder: Path, file: str, path: str, value: Any) -> None:
    """Change a field unless an earlier change removed the object that contains it."""
    try:
        change_json(folder, file, path, value)
    except (KeyError, TypeError, IndexError, ValueError):
        return


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    """``auto_map`` in the checkpoint's config refers to code that transformers would execute."""
    folder = copy_tiny(tmp_path / "model")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")
        change_json(folder, name, "auto_map", {each: "rogue.Thing" for each in names})
        change_json(folder, name, "trust_remote_code", True)
    (folder / "rogue.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\nclass Thing: ...\n")

    model = open_model(load_settings(["--model", str(folder), "--device", "cpu"]))

    assert model.heartbeat.model
    assert not (tmp_path / "was_here").exists()
    assert "rogue" not in {name.rpartition(".")[2] for name in sys.modules}


def test_an_error_is_one_line_of_limited_length() -> None:
    message = str(StartupError("a\n2026-01-01 ERROR forged\x1b[2J\u2028" + "b" * 10_000))

    assert message.isprintable() and len(message) < MAX_LINE
