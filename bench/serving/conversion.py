"""The conversion of a checkpoint to the format of another server, which is done once and timed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Conversion"]


@dataclass(frozen=True)
class Conversion:
    """A conversion that creates ``result``, a file or a folder, from the result of ``source`` if it has one.

    ``convert`` raises Unavailable if it fails.
    """

    result: Path
    convert: Callable[[], None]
    source: Conversion | None = None

    def ensure(self) -> float:
        """Convert the checkpoint unless this has been done, and return how many seconds it took in total."""
        total_s = self.source.ensure() if self.source else 0.0
        record = self.result.with_name(f"{self.result.name}.seconds")  # written once the result is complete
        if not (record.is_file() and self.result.exists()):
            _remove(self.result)
            began = time.perf_counter()
            self.convert()
            record.write_text(f"{time.perf_counter() - began:.3f}\n", encoding="utf-8")
        return total_s + float(record.read_text(encoding="utf-8"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
