"""Stores the measured memory of the largest step next to the packed weights.

The next worker with the same weights, settings and code uses the stored result instead of measuring again,
which takes a second of CPU time for a model with 1.3 billion parameters.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import llava_worker
from llava_worker.engine.startup.warmup import StepMemory
from llava_worker.model.loading.weights_key import code_digest
from llava_worker.model.private_folder import make_private, open_private

__all__ = ["StoredStepMemory"]

_CODE = Path(llava_worker.__file__).parent

logger = logging.getLogger(__name__)


class StoredStepMemory:
    """The memory of a step of the model whose packed weights are stored in ``folder`` under ``weights_key``.

    ``settings`` are all other values that affect the memory of a step, apart from the worker's code.
    """

    def __init__(self, folder: Path, weights_key: str, settings: object) -> None:
        parts = json.dumps([weights_key, settings, code_digest(_CODE)])
        self._path = folder / f"{blake2b(parts.encode(), digest_size=16).hexdigest()}.step"

    def load(self) -> StepMemory | None:
        """Return the stored result, or None if there is none or if it cannot be read."""
        try:
            with os.fdopen(open_private(self._path), "rb") as file:
                return _parse(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("the memory of a step is measured again: %s", error)
            return None

    def store(self, memory: StepMemory) -> StepMemory:
        """Store and return the result. If this fails, log the reason."""
        temporary = self._path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            make_private(self._path.parent)
            try:
                temporary.touch(mode=0o600)
                temporary.write_text(json.dumps(asdict(memory)))
                temporary.rename(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the memory of a step cannot be stored, so the next start takes longer: %s", error)
        return memory


def _parse(data: bytes) -> StepMemory:
    """Raise ValueError if the file was not written by `StoredStepMemory`."""
    values = json.loads(data)
    names = set(StepMemory.__dataclass_fields__)
    if not isinstance(values, dict) or values.keys() != names:
        raise ValueError(f"expected an object with {', '.join(sorted(names))}")
    if not all(type(value) is int and value >= 0 for value in values.values()):
        raise ValueError("sizes must be integers of at least 0")
    return StepMemory(**values)
