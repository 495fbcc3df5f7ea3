"""The memory of a step is measured once for the same weights, settings and code."""

from __future__ import annotations

import os
from pathlib import Path

import llava_worker
import pytest
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.stored_step_memory import StoredStepMemory
from llava_worker.engine.startup.warmup import StepMemory, WarmupSteps

TINY = Path(llava_worker.__file__).parent / "tiny"
MEMORY = StepMemory(tower=3, prefill=2, decode=1)


def stored_in(folder: Path, key: str = "a" * 32, settings: object = (1, "int8")) -> StoredStepMemory:
    return StoredStepMemory(folder, key, settings)


def test_the_stored_result_is_returned_only_for_the_same_weights_and_settings(tmp_path: Path) -> None:
    assert stored_in(tmp_path).load() is None

    assert stored_in(tmp_path).store(MEMORY) == MEMORY

    assert stored_in(tmp_path).load() == MEMORY
    assert stored_in(tmp_path, key="b" * 32).load() is None
    assert stored_in(tmp_path, settings=(2, "int8")).load() is None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tower": 1}', '{"tower": -1, "prefill": 1, "decode": 1}', "\0" * 40]
)
def test_a_damaged_file_is_ignored_and_replaced(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored_in(tmp_path).store(MEMORY)
    (path,) = tmp_path.iterdir()
    path.write_text(content)

    assert stored_in(tmp_path).load() is None
    assert "measured again" in caplog.text

    stored_in(tmp_path).store(MEMORY)
    assert stored_in(tmp_path).load() == MEMORY


def test_a_fifo_in_the_place_of_the_file_does_not_block_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored_in(tmp_path).store(MEMORY)
    (path,) = tmp_path.iterdir()
    path.unlink()
    os.mkfifo(path, 0o600)

    assert stored_in(tmp_path).load() is None
    assert f"{path} is not a regular file" in caplog.text

    stored_in(tmp_path).store(MEMORY)
    assert stored_in(tmp_path).load() == MEMORY


def test_a_file_that_other_users_can_write_to_is_ignored(tmp_path: Path) -> None:
    stored_in(tmp_path).store(MEMORY)
    (path,) = tmp_path.iterdir()
    path.chmod(0o666)

    assert stored_in(tmp_path).load() is None


def test_a_result_that_cannot_be_stored_is_still_returned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    assert stored_in(tmp_path / "file").store(MEMORY) == MEMORY
    assert "cannot be stored" in caplog.text


def test_the_second_start_measures_nothing_and_reserves_the_same_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    prefill, measured = WarmupSteps.prefill, []

    def record(steps: WarmupSteps, num_tokens: int) -> int:
        measured.append(num_tokens)
        return prefill(steps, num_tokens)

    monkeypatch.setattr(WarmupSteps, "prefill", record)

    def start(max_num_sequences: int = 4) -> str:
        measured.clear()
        caplog.clear()
        config = EngineConfig(TINY, device="cpu", weights_cache=tmp_path, max_num_sequences=max_num_sequences)
        build_engine(config)
        (message,) = [line for line in caplog.messages if line.startswith("memory (MiB)")]
        return message.partition(" for the largest step ")[2].partition(")")[0]

    first = start()
    assert measured
    if not list(tmp_path.glob("*.weights")) or "is not shared" in caplog.text:
        pytest.skip("this system cannot map the weights")
    assert start() == first
    assert not measured
    start(max_num_sequences=3)
    assert measured
