"""Packed weights are stored once and are the weights of the checkpoint."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llava_worker.model.llava import Llava
from llava_worker.model.loading import cached_file
from llava_worker.model.loading.weights_cache import WeightsCache
from safetensors.torch import load_file, save_file

from tests.worker.checkpoints import LLAVA_INTERLEAVE, write_checkpoint
from tests.worker.layouts import write_adapter, write_original
from tests.worker.model.load_model import assert_same_weights, load_model
from tests.worker.model.loading.weights_cache.loaded import Loaded, only_file, stored
from tests.worker.model.resident_memory import resident_bytes

PRECISIONS = ["fp32", "bf16", "int8", "int4"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, LLAVA_INTERLEAVE], ids=["llama", "tied"])
def test_the_second_process_does_not_read_the_checkpoint_and_has_the_same_weights(
    tmp_path: Path, cache: WeightsCache, precision: str, options: dict[str, object]
) -> None:
    write_checkpoint(tmp_path, **options)  # type: ignore[arg-type]
    expected = load_model(tmp_path, precision)
    first, second = Loaded(tmp_path, cache, precision), Loaded(tmp_path, cache, precision)
    assert first.is_read and not second.is_read
    assert (first.weights.digest, first.weights.key) == (second.weights.digest, second.weights.key)
    assert first.mapped_bytes == second.mapped_bytes == only_file(cache).stat().st_size
    tiles = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8)
    for loaded in (first, second):
        assert_same_weights(loaded.model, expected)
        assert torch.equal(loaded.model.encode(tiles), expected.encode(tiles))
        hidden = expected.embed(torch.arange(5))
        assert torch.equal(loaded.model.logits(hidden), expected.logits(hidden))


def test_each_precision_has_its_own_file(folder: Path, cache: WeightsCache) -> None:
    for precision in PRECISIONS:
        assert Loaded(folder, cache, precision).is_read
    assert len(stored(cache)) == len(PRECISIONS)


def test_small_weights_are_not_stored(folder: Path, cache: WeightsCache) -> None:
    size = Loaded(folder, cache, "fp32").mapped_bytes
    only_file(cache).unlink()
    small = WeightsCache(cache.folder, min_bytes=size + 1)
    assert Loaded(folder, small, "fp32").mapped_bytes == 0
    assert not stored(cache)
    assert Loaded(folder, WeightsCache(cache.folder, min_bytes=size), "fp32").mapped_bytes == size


def edit_one_value(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name][7, 3] += 1
    save_file(tensors, path)


def set_mtime(folder: Path) -> None:
    """Change the time only, as if the file had been replaced with one whose samples are equal."""
    os.utime(folder / "model.safetensors", ns=(0, 12345))


def add_file(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes(b"")


@pytest.mark.parametrize("change", [edit_one_value, set_mtime, add_file])
def test_a_changed_checkpoint_is_read_again(
    folder: Path, cache: WeightsCache, change: Callable[[Path], None]
) -> None:
    Loaded(folder, cache, "int8")
    change(folder)
    changed = Loaded(folder, cache, "int8")
    assert changed.is_read
    assert_same_weights(changed.model, load_model(folder, "int8"))
    assert len(stored(cache)) == 2


def test_different_weights_in_files_with_equal_names_sizes_and_times_are_read(
    folder: Path, tmp_path: Path, cache: WeightsCache
) -> None:
    write_checkpoint(tmp_path / "other", seed=1)
    for each in (folder, tmp_path / "other"):
        os.utime(each / "model.safetensors", ns=(0, 0))
    Loaded(folder, cache, "fp32")
    assert Loaded(tmp_path / "other", cache, "fp32").is_read


def test_a_moved_checkpoint_is_not_read_again(folder: Path, tmp_path: Path, cache: WeightsCache) -> None:
    Loaded(folder, cache, "fp32")
    assert not Loaded(folder.rename(tmp_path / "moved"), cache, "fp32").is_read


def test_an_adapter_has_its_own_file(folder: Path, tmp_path: Path, cache: WeightsCache) -> None:
    base = write_original(folder, tmp_path / "base")
    Loaded(base, cache, "fp32")
    adapter = write_adapter(base, tmp_path / "adapter")
    for is_read in (True, False):
        merged = Loaded(adapter, cache, "fp32", base=base)
        assert merged.is_read is is_read
        assert_same_weights(merged.model, load_model(adapter, base=base))


def test_a_running_model_is_not_affected_if_its_file_is_replaced_or_deleted(
    folder: Path, cache: WeightsCache
) -> None:
    expected, running = load_model(folder, "int4"), Loaded(folder, cache, "int4")
    path = only_file(cache)
    (path.parent / "new").write_bytes(bytes(path.stat().st_size))
    (path.parent / "new").replace(path)
    assert_same_weights(running.model, expected)
    path.unlink()
    assert_same_weights(running.model, expected)


def test_writing_to_a_parameter_does_not_change_the_file(folder: Path, cache: WeightsCache) -> None:
    with torch.no_grad():
        for parameter in Loaded(folder, cache, "fp32").model.parameters():
            parameter.zero_()
    assert_same_weights(Loaded(folder, cache, "fp32").model, load_model(folder, "fp32"))


def test_the_memory_is_unmapped_with_the_model(folder: Path, cache: WeightsCache) -> None:
    loaded = Loaded(folder, cache, "fp32")
    name = only_file(cache).name
    assert name in Path("/proc/self/maps").read_text()
    del loaded
    gc.collect()
    assert name not in Path("/proc/self/maps").read_text()


def num_resident(model: Llava) -> int:
    """Return how many bytes of the parameters are in memory that counts toward this process."""
    return sum(resident_bytes(parameter.data) for parameter in model.parameters())


def test_mapped_weights_are_in_the_memory_of_the_process_once_they_are_used(
    folder: Path, cache: WeightsCache
) -> None:
    model = Loaded(folder, cache, "bf16").model
    assert num_resident(model) == 0
    model.encode(torch.zeros(1, 28, 28, 3, dtype=torch.uint8))
    assert num_resident(model) > 0


def test_rows_of_the_embedding_table_are_read_from_the_file(folder: Path, cache: WeightsCache) -> None:
    expected, model = load_model(folder, "bf16"), Loaded(folder, cache, "bf16").model
    table = model.language_model.embed_tokens
    for ids in ([7], [3, 3, 5, 3, 0], list(range(len(table.weight))), []):
        assert torch.equal(
            model.embed(torch.tensor(ids)), expected.embed(torch.tensor(ids, dtype=torch.long))
        )
    assert resident_bytes(table.weight) == 0
    with pytest.raises(IndexError, match="not in the table"):
        model.embed(torch.tensor([len(table.weight)]))


def test_an_embedding_table_that_is_also_the_output_layer_is_mapped(
    tmp_path: Path, cache: WeightsCache
) -> None:
    write_checkpoint(tmp_path, **LLAVA_INTERLEAVE)
    model = Loaded(tmp_path, cache, "bf16").model
    model.logits(model.embed(torch.tensor([1, 2])))
    assert resident_bytes(model.language_model.embed_tokens.weight) > 0


def test_without_huge_pages_in_the_file_the_weights_are_in_private_memory(
    folder: Path, cache: WeightsCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(cached_file, "_TRANSPARENT_HUGE_PAGES", tmp_path / "enabled")
    first, second = Loaded(folder, cache, "int8"), Loaded(folder, cache, "int8")
    assert first.mapped_bytes == second.mapped_bytes == 0
    assert first.is_read and not second.is_read
    assert only_file(cache).name not in Path("/proc/self/maps").read_text()
    for loaded in (first, second):
        assert_same_weights(loaded.model, load_model(folder, "int8"))
