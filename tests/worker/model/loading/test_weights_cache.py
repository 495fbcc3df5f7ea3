"""Packed weights are stored once, shared by all processes, and never wrong."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading import weights_cache
from llava_worker.model.loading.weights import LoadedWeights, load_weights
from llava_worker.model.loading.weights_cache import WeightsCache
from llava_worker.model.quantization.precision import choose_precision
from safetensors.torch import load_file, save_file

from tests.waiting import wait_until
from tests.worker.checkpoints import LLAVA_INTERLEAVE, write_checkpoint
from tests.worker.layouts import write_adapter, write_original
from tests.worker.model.load_model import CPU, assert_same_weights, load_model
from tests.worker.model.loading import weights_cache_program
from tests.worker.model.resident_memory import resident_bytes

PRECISIONS = ["fp32", "bf16", "int8", "int4"]


class Loaded:
    """A model that was loaded with a cache."""

    def __init__(
        self, folder: Path, cache: WeightsCache, precision: str, *, base: Path | None = None
    ) -> None:
        config_folder = folder if (folder / "config.json").exists() or base is None else base
        self.model = Llava(
            read_config(config_folder),
            read_image_config(config_folder),
            precision=choose_precision(precision, CPU),
            device=CPU,
        )
        self.num_reads = 0
        self.weights: LoadedWeights = load_weights(
            self.model, folder, base=base, cache=cache, on_progress=self._count
        )

    def _count(self, *_: int) -> None:
        self.num_reads += 1

    @property
    def is_read(self) -> bool:
        """Whether the checkpoint was read."""
        return self.num_reads > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsCache:
    """A cache whose files are mapped even if they are too small for huge pages."""
    monkeypatch.setattr(weights_cache, "_TRANSPARENT_HUGE_PAGES", Path("/does/not/exist"))
    return WeightsCache(tmp_path / "cache")


def stored(cache: WeightsCache) -> list[Path]:
    return sorted(cache.folder.glob("*.weights"))


def only_file(cache: WeightsCache) -> Path:
    (path,) = stored(cache)
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", [{}, LLAVA_INTERLEAVE], ids=["llama", "tied"])
def test_the_second_process_does_not_read_the_checkpoint_and_has_the_same_weights(
    tmp_path: Path, cache: WeightsCache, precision: str, options: dict[str, object]
) -> None:
    write_checkpoint(tmp_path, **options)  # type: ignore[arg-type]
    expected = load_model(tmp_path, precision)
    first, second = Loaded(tmp_path, cache, precision), Loaded(tmp_path, cache, precision)
    assert first.is_read and not second.is_read
    assert first.weights == second.weights
    assert first.weights.mapped_bytes == only_file(cache).stat().st_size
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
    size = Loaded(folder, cache, "fp32").weights.mapped_bytes
    only_file(cache).unlink()
    small = WeightsCache(cache.folder, min_bytes=size + 1)
    assert Loaded(folder, small, "fp32").weights.mapped_bytes == 0
    assert not stored(cache)
    assert Loaded(folder, WeightsCache(cache.folder, min_bytes=size), "fp32").weights.mapped_bytes == size


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
    assert "packed weights are built again" in caplog.text
    assert_same_weights(rebuilt.model, load_model(folder, "int8"))
    assert not Loaded(folder, cache, "int8").is_read


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
    monkeypatch.setattr(weights_cache, "_TRANSPARENT_HUGE_PAGES", tmp_path / "enabled")
    first, second = Loaded(folder, cache, "int8"), Loaded(folder, cache, "int8")
    assert first.weights.mapped_bytes == second.weights.mapped_bytes == 0
    assert first.is_read and not second.is_read
    assert only_file(cache).name not in Path("/proc/self/maps").read_text()
    for loaded in (first, second):
        assert_same_weights(loaded.model, load_model(folder, "int8"))


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
    assert loaded.is_read and loaded.weights.mapped_bytes == 0
    assert_same_weights(loaded.model, load_model(folder, "int8"))
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "packed weights cannot be stored in" in warning.message


def test_a_file_that_others_can_write_to_is_not_used(folder: Path, cache: WeightsCache) -> None:
    Loaded(folder, cache, "int8")
    only_file(cache).chmod(0o666)
    assert Loaded(folder, cache, "int8").is_read


def test_a_symbolic_link_is_not_followed(folder: Path, cache: WeightsCache, tmp_path: Path) -> None:
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    assert Loaded(folder, cache, "int8").is_read


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_and_leaves_no_file(
    folder: Path, cache: WeightsCache, caplog: pytest.LogCaptureFixture
) -> None:
    with file_size_limit(20_000):
        loaded = Loaded(folder, cache, "int8")
    assert_same_weights(loaded.model, load_model(folder, "int8"))
    assert loaded.weights.mapped_bytes == 0
    assert caplog.text.count("packed weights cannot be stored in") == 1
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]


def test_weights_that_need_more_than_half_of_the_free_space_are_not_stored(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weights_cache, "_MAX_SHARE", 0.0)
    assert Loaded(folder, cache, "int8").weights.mapped_bytes == 0
    assert "more than half of the free space" in caplog.text
    assert not stored(cache)


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
    monkeypatch.setattr(weights_cache, "_MAX_SHARE", num_used / (free + num_used))
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


class Program:
    """A process that runs weights_cache_program."""

    def __init__(self, folder: Path, cache: Path, precision: str = "int8") -> None:
        arguments = [str(folder), str(cache), precision]
        self.process = subprocess.Popen(
            [sys.executable, "-m", weights_cache_program.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


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
        wait_until(lambda: _opens(waiting.process.pid, lock))
        holder.send_signal(signal.SIGKILL)
        assert waiting.receive() == "loaded\n"
    assert stored(cache) == [path]


def test_weights_are_loaded_if_another_process_holds_the_lock_for_too_long(
    folder: Path, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weights_cache, "_MAX_WAIT_S", 0.0)
    Loaded(folder, cache, "int8")
    path = only_file(cache)
    path.unlink()
    with weights_cache._lock(path.with_suffix(".lock")):
        loaded = Loaded(folder, cache, "int8")
    assert loaded.is_read and not stored(cache)
    assert "another process has locked" in caplog.text


def _opens(pid: int, path: Path) -> bool:
    return any(_target(each) == str(path) for each in Path(f"/proc/{pid}/fd").iterdir())


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:  # closed in the meantime
        return ""
