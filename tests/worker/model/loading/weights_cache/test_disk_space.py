"""Packed weights use at most half of the free space, and old files are deleted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from llava_worker.model.loading import unstored_weights
from llava_worker.model.loading.weights_cache import WeightsCache

from tests.file_size_limit import file_size_limit
from tests.worker.model.load_model import assert_same_weights, load_model
from tests.worker.model.loading.weights_cache.loaded import Loaded, only_file, stored


def test_a_full_disk_is_reported_and_leaves_no_file(
    folder: Path, cache: WeightsCache, caplog: pytest.LogCaptureFixture
) -> None:
    with file_size_limit(20_000):
        loaded = Loaded(folder, cache, "int8")
    assert_same_weights(loaded.model, load_model(folder, "int8"))
    assert loaded.mapped_bytes == 0
    assert caplog.text.count("so the next start takes longer") == 1
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]


def test_weights_that_need_more_than_half_of_the_free_space_are_not_stored(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unstored_weights, "_MAX_SHARE", 0.0)
    assert Loaded(folder, cache, "int8").mapped_bytes == 0
    assert "more than half of the free space" in caplog.text
    assert not stored(cache)


def test_weights_that_do_not_fit_displace_no_other_file(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loaded(folder, cache, "int4")
    monkeypatch.setattr(unstored_weights, "_MAX_SHARE", 0.0)
    Loaded(folder, cache, "fp32")
    assert not Loaded(folder, cache, "int4").is_read


def test_unfinished_files_of_other_processes_count_as_used_space(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loaded(folder, cache, "int4")
    path = only_file(cache)
    (cache.folder / "other.tmp").write_bytes(bytes(8 * path.stat().st_size))
    free = os.statvfs(cache.folder).f_bavail * os.statvfs(cache.folder).f_frsize
    num_used = 9 * path.stat().st_size
    monkeypatch.setattr(unstored_weights, "_MAX_SHARE", num_used / (free + num_used))
    Loaded(folder, cache, "int8")
    assert path not in stored(cache)


def test_files_that_were_used_the_longest_ago_are_deleted_first(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, precision in enumerate(["fp32", "bf16", "int8"]):
        before = set(stored(cache))
        Loaded(folder, cache, precision)
        (path,) = set(stored(cache)) - before
        os.utime(path, (time.time() - age, time.time() - age))
    num_used = sum(path.stat().st_size for path in stored(cache))
    free = os.statvfs(cache.folder).f_bavail * os.statvfs(cache.folder).f_frsize
    monkeypatch.setattr(unstored_weights, "_MAX_SHARE", num_used / (free + num_used))
    Loaded(folder, cache, "int4")
    assert not Loaded(folder, cache, "fp32").is_read  # used last
    assert Loaded(folder, cache, "int8").is_read


def test_expired_files_are_deleted_when_a_file_is_stored(folder: Path, cache: WeightsCache) -> None:
    Loaded(folder, cache, "fp32")
    expired, recent = cache.folder / "a.tmp", cache.folder / "b.tmp"
    for path, days in ((only_file(cache), 31), (expired, 2), (recent, 0)):
        path.touch()
        os.utime(path, (time.time() - days * 86400, time.time() - days * 86400))
    old = only_file(cache)
    Loaded(folder, cache, "bf16")
    assert not old.exists() and not expired.exists() and recent.exists()
