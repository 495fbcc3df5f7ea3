from __future__ import annotations

from pathlib import Path

import pytest
from llava_worker.model.loading import cached_file
from llava_worker.model.loading.weights_cache import WeightsCache

from tests.worker.checkpoints import write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsCache:
    """A cache whose files are mapped even if they are too small for huge pages."""
    monkeypatch.setattr(cached_file, "_TRANSPARENT_HUGE_PAGES", Path("/does/not/exist"))
    return WeightsCache(tmp_path / "cache")
