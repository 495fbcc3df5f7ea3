"""Processes that load the same weights build one file and share its memory."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from llava_worker.model.loading import weights_cache
from llava_worker.model.loading.file_lock import FileLock
from llava_worker.model.loading.weights_cache import WeightsCache

from tests.waiting import wait_until
from tests.worker.model.loading.weights_cache.loaded import Loaded, only_file, stored
from tests.worker.model.loading.weights_cache.loading_process import Program, opens


def test_concurrent_processes_build_one_file_and_share_its_memory(folder: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        programs = [Program(folder, tmp_path / "cache") for _ in range(4)]
        for program in programs:
            stack.callback(program.close)
        for step in range(2):  # load, and measure once all of them have loaded
            for program in programs:
                program.send()
            if step == 0:
                assert [program.receive() for program in programs] == ["loaded\n"] * 4
        reports = [json.loads(program.receive()) for program in programs]
    assert sum(report["is_read"] for report in reports) == 1
    assert len({report["digest"] for report in reports}) == 1
    (path,) = (tmp_path / "cache").glob("*.weights")
    assert all(report["resident"] >= path.stat().st_size - 4096 for report in reports)
    assert sum(report["proportional"] for report in reports) <= path.stat().st_size + 4 * 4096


def test_the_lock_of_a_killed_process_is_released(folder: Path, cache: WeightsCache) -> None:
    cache.folder.mkdir(mode=0o700)
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.unlink()
    lock = path.with_suffix(".lock")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, signal, sys\n"
            "fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)\n"
            "print('locked', flush=True)\n"
            "signal.pause()",
            str(lock),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with ExitStack() as stack:
        stack.callback(holder.communicate)
        stack.callback(holder.kill)
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        waiting = Program(folder, cache.folder)
        stack.callback(waiting.close)
        waiting.send()
        wait_until(lambda: opens(waiting.process.pid, lock))
        holder.send_signal(signal.SIGKILL)
        assert waiting.receive() == "loaded\n"
    assert stored(cache) == [path]


def test_the_unfinished_file_of_a_killed_process_is_replaced(folder: Path, cache: WeightsCache) -> None:
    cache.folder.mkdir(mode=0o700)
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.rename(path.with_suffix(".tmp"))
    assert Loaded(folder, cache, "int8").is_read
    assert stored(cache) == [path] and not path.with_suffix(".tmp").exists()


def test_weights_are_loaded_if_another_process_holds_the_lock_for_too_long(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weights_cache, "_MAX_WAIT_S", 0.0)
    caplog.set_level(logging.INFO)
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.unlink()
    lock = FileLock(path.with_suffix(".lock"), max_wait_s=0.0, purpose="wait")
    loaded = Loaded(folder, cache, "int8")
    lock.release()
    assert loaded.is_read and not stored(cache)
    assert caplog.text.count("waiting for another process to load and store the packed weights") == 1
    assert "another process has locked" in caplog.text
