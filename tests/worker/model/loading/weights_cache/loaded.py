"""A model that was loaded with a cache of packed weights, and the files of the cache."""

from __future__ import annotations

from pathlib import Path

from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import LoadedWeights, load_weights
from llava_worker.model.loading.weights_cache import WeightsCache
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.model.load_model import CPU


class Loaded:
    """A model that was loaded with a cache. Its weights are stored, unless ``is_stored`` is false."""

    def __init__(
        self,
        folder: Path,
        cache: WeightsCache,
        precision: str,
        *,
        base: Path | None = None,
        is_stored: bool = True,
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
        self.mapped_bytes = self.weights.mapped_bytes
        if is_stored and self.weights.unstored is not None:
            self.mapped_bytes = self.weights.unstored.store_now()

    def _count(self, *_: int) -> None:
        self.num_reads += 1

    @property
    def is_read(self) -> bool:
        """Whether the checkpoint was read."""
        return self.num_reads > 0


def stored(cache: WeightsCache) -> list[Path]:
    return sorted(cache.folder.glob("*.weights"))


def only_file(cache: WeightsCache) -> Path:
    (path,) = stored(cache)
    return path
