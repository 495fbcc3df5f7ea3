"""The free memory takes the limit of the container into account."""

from __future__ import annotations

from pathlib import Path

from llava_worker.model.available_memory import _container_bytes, _machine_bytes


def test_the_container_limit_applies_and_page_cache_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\nactive_file 100\n")
    assert _container_bytes(tmp_path) == 550

    # Mapped weights are active page cache, which does not count as free, or inactive page cache, which does.
    assert _container_bytes(tmp_path, mapped_bytes=100) == 550
    assert _container_bytes(tmp_path, mapped_bytes=300) == 350
    assert _container_bytes(tmp_path, mapped_bytes=900) == 300

    (tmp_path / "memory.max").write_text("max\n")
    assert _container_bytes(tmp_path) is None
    assert _container_bytes(tmp_path / "elsewhere") is None


def test_a_machine_with_unknown_memory_is_not_limited(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")

    assert _machine_bytes(tmp_path / "meminfo") == 7 * 1024
    assert _machine_bytes(tmp_path / "elsewhere") is None
