"""Files and folders that are damaged or unsafe are not used, and the weights are loaded all the same."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llava_worker.model.loading import unstored_weights
from llava_worker.model.loading.cached_file import open_file
from llava_worker.model.loading.packed_file import DamagedFile, MappedFile
from llava_worker.model.loading.weights_cache import WeightsCache

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.load_model import assert_same_weights, load_model
from tests.worker.model.loading.weights_cache.loaded import Loaded, only_file, stored


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def zero_a_page(path: Path) -> None:
    """Simulate data that was lost in a power failure."""
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)


def swap_pages(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[4096:8192] + data[:4096] + data[8192:])


def change_the_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-4096 + 40] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, zero_a_page, swap_pages, change_the_footer])
def test_a_damaged_file_is_built_again(
    folder: Path, cache: WeightsCache, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    Loaded(folder, cache, "int8")
    damage(only_file(cache))
    rebuilt = Loaded(folder, cache, "int8")
    assert rebuilt.is_read
    assert caplog.text.count("packed weights are built again") == 1
    assert_same_weights(rebuilt.model, load_model(folder, "int8"))
    assert not Loaded(folder, cache, "int8").is_read


@pytest.mark.skipif(sys.platform != "linux", reason="requires MADV_POPULATE_READ")
def test_a_file_that_becomes_unreadable_while_it_is_verified_is_an_error_rather_than_a_signal(
    folder: Path, cache: WeightsCache
) -> None:
    loaded = Loaded(folder, cache, "int8")
    path = only_file(cache)
    with pytest.raises(DamagedFile, match="cannot be read at byte 0"):
        open_file(path, list(loaded.model.parameters()), on_chunk=lambda: empty(path))


def test_a_stored_file_that_is_not_readable_is_deleted_and_the_model_is_used(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damage_and_open(path: Path, *arguments: object) -> MappedFile:
        flip_a_bit(path)
        return open_file(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(unstored_weights, "open_file", damage_and_open)
    loaded = Loaded(folder, cache, "int8")
    assert loaded.mapped_bytes == 0 and not stored(cache)
    assert caplog.text.count("so the next start takes longer, because") == 1
    assert_same_weights(loaded.model, load_model(folder, "int8"))


def test_a_fifo_in_the_place_of_a_file_does_not_block_and_is_not_used(
    folder: Path, cache: WeightsCache, caplog: pytest.LogCaptureFixture
) -> None:
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.unlink()
    os.mkfifo(path, 0o600)
    loaded = Loaded(folder, cache, "int8")
    assert loaded.is_read
    assert f"{path} is not a regular file" in caplog.text
    assert_same_weights(loaded.model, load_model(folder, "int8"))


def test_a_file_with_the_name_of_another_one_is_built_again(
    folder: Path, tmp_path: Path, cache: WeightsCache
) -> None:
    Loaded(folder, cache, "fp32")
    path = only_file(cache)
    write_checkpoint(tmp_path / "other", seed=1)
    Loaded(tmp_path / "other", cache, "fp32")
    (other,) = set(stored(cache)) - {path}
    other.replace(path)
    assert Loaded(folder, cache, "fp32").is_read


def occupy(cache: WeightsCache) -> None:
    cache.folder.write_text("this is not a folder")


def open_to_others(cache: WeightsCache) -> None:
    cache.folder.mkdir()
    cache.folder.chmod(0o777)


@pytest.mark.parametrize("obstacle", [occupy, open_to_others])
def test_an_unusable_folder_is_reported_once_and_the_weights_are_loaded(
    folder: Path,
    cache: WeightsCache,
    obstacle: Callable[[WeightsCache], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    obstacle(cache)
    loaded = Loaded(folder, cache, "int8")
    assert loaded.is_read and loaded.mapped_bytes == 0
    assert_same_weights(loaded.model, load_model(folder, "int8"))
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"not stored in {cache.folder} (LLAVA_WEIGHTS_CACHE)" in warning.message


def test_a_file_that_others_can_write_to_is_not_used(folder: Path, cache: WeightsCache) -> None:
    Loaded(folder, cache, "int8")
    only_file(cache).chmod(0o666)
    assert Loaded(folder, cache, "int8").is_read


def test_a_symbolic_link_is_not_followed(folder: Path, cache: WeightsCache, tmp_path: Path) -> None:
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    assert Loaded(folder, cache, "int8").is_read
