"""Opens an untrusted checkpoint in a `SandboxedProcess` before the worker opens it itself.

transformers trusts the files of a checkpoint: a number in config.json can make it create a model without end,
and a number in preprocessor_config.json can make an image processor use all memory for a single image. The
child process creates the model without allocating its weights, loads the processor, and processes images of
the smallest and the largest usual size. A checkpoint that passes can still be slow for a specific image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava_worker.engine.transformers.checkpoint import check_size, read_checkpoint
from llava_worker.engine.transformers.processor import ModelProcessor, ProcessorError
from llava_worker.model.config.untrusted_file import CheckpointError
from llava_worker.sandboxed_process import ProcessFailure, ProcessLimits, SandboxedProcess, serve

__all__ = ["CheckpointCheck", "find_error"]

_LIMITS = ProcessLimits(cpu_s=60.0, timeout_s=240.0, memory_bytes=3 << 30)
_LARGE_SIZE = (2048, 2048)  # pixels
_REASONS = {
    "time": f"takes longer than {_LIMITS.cpu_s:g} seconds of CPU time",
    "memory": f"needs more than {_LIMITS.memory_bytes >> 20} MiB of memory",
    "crash": "makes the process crash",
}


class CheckpointCheck:
    """A child process for one check. It is killed when the object is deleted or closed."""

    def __init__(self) -> None:
        """Start the process without waiting until it is ready."""
        self._process = SandboxedProcess("llava_worker.engine.transformers.checkpoint_check", _LIMITS)
        self._process.start()

    def check(self, folder: Path) -> None:
        """Check the folder. Its tokenizer must have been checked before. Raises CheckpointError."""
        try:
            error = self._process.request(str(folder))
        except ProcessFailure as failure:
            raise CheckpointError(
                f"Opening the model in {folder} and processing an image {_REASONS[failure.reason]}. Check "
                "the numbers in config.json, preprocessor_config.json and processor_config.json."
            ) from failure
        if error is not None:
            raise CheckpointError(error)

    def close(self) -> None:
        self._process.close()


def _open_checker(_setup: Any) -> Callable[[Any], object]:
    import torch
    from transformers.models.auto import modeling_auto, processing_auto  # noqa: F401 - not limited

    torch.set_num_threads(1)
    return find_error


def find_error(folder: Any) -> str | None:
    """Return why the checkpoint cannot be used, or None if it can."""
    try:
        checkpoint = read_checkpoint(Path(folder))
        checkpoint.check_numbers()
        check_size(checkpoint)
        processor = ModelProcessor(checkpoint.folder, checkpoint.config)
        with suppress(ProcessorError):  # the limits matter, not whether the model supports this size
            processor.replacements([_LARGE_SIZE])
    except CheckpointError as error:
        return str(error)
    return None


if __name__ == "__main__":
    serve(_open_checker)
