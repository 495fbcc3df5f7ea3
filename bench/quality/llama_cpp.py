"""The accuracy of llama.cpp's formats on the same weights, tokens and contexts.

Requires the programs llama-quantize and llama-perplexity, for example from the sources in the PyPI package
llama-cpp-python (docs/performance/precision.md contains the commands). llama-perplexity writes the
log-probabilities with 16 bits each, between the maximum and 16 nats below it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.quality.examples import Example
from bench.quality.smollm2 import write_gguf

__all__ = ["TYPES", "LlamaCpp", "bits_per_weight", "read_log_probs"]

TYPES = ("F32", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0")
_MAGIC = b"_logits_"


class LlamaCpp:
    """llama.cpp's programs, and a folder for the GGUF files that they write."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder

    def quantize(self, original: Path, kind: str) -> Path:
        """Return the rescaled weights of ``original`` in a format. Write the file if it does not exist."""
        path = self._folder / f"{kind}.gguf"
        if path.is_file():
            return path
        unfinished = path.with_suffix(".part")
        if kind == "F32":
            plain = path.with_suffix(".plain")
            self._call("llama-quantize", "--allow-requantize", original, plain, kind)
            write_gguf(plain, unfinished)
            plain.unlink()
        else:
            self._call("llama-quantize", self.quantize(original, "F32"), unfinished, kind)
        return unfinished.replace(path)

    def log_probs(
        self, model: Path, text: Path, examples: list[Example], *, num_threads: int
    ) -> Iterator[Tensor]:
        """Yield the log-probabilities of each window of the text, fp32 [targets, vocab]."""
        size = len(examples[0].token_ids)
        out = self._folder / "log-probs.bin"
        options = ["-c", size, "-b", size, "--chunks", len(examples), "-t", num_threads]
        self._call("llama-perplexity", "-m", model, "-f", text, *options, "--kl-divergence-base", out)
        try:
            yield from read_log_probs(out, examples)
        finally:
            out.unlink()

    def _call(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()[-3:]
            raise RuntimeError(f"{program} failed with exit code {done.returncode}: {' '.join(lines)}")


def read_log_probs(path: Path, examples: list[Example]) -> Iterator[Tensor]:
    """Yield the contents of a file written by ``llama-perplexity --kl-divergence-base``.

    The file starts with a magic number, the window size, the vocabulary size, the number of windows and the
    token IDs. Each row consists of the step and the minimum in fp32, then one multiple of the step per token
    of the vocabulary. Raises ValueError if the tokens differ from those of ``examples``.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path.name} does not start with {_MAGIC!r}. Use another version of llama.cpp.")
        size, num_vocab, num = np.fromfile(file, np.int32, 3).tolist()
        tokens = np.fromfile(file, np.int32, size * num).reshape(num, size)
        if tokens.tolist() != [example.token_ids for example in examples]:
            raise ValueError("llama.cpp's tokenizer returned other tokens for the text. Use another text.")
        columns = 4 + 2 * (-(-num_vocab // 2))
        for example in examples:
            num_rows = len(example.targets)
            rows = np.fromfile(file, np.uint16, num_rows * columns).reshape(num_rows, columns)
            header = torch.from_numpy(rows[:, :4].copy().view(np.float32))
            codes = torch.from_numpy(rows[:, 4 : 4 + num_vocab].astype(np.float32))
            yield codes * header[:, :1] + header[:, 1:]


def bits_per_weight(path: Path) -> float:
    """Return the size of the decoder layers' matrices."""
    from gguf import GGUFReader

    matrices = [
        tensor
        for tensor in GGUFReader(path).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    ]
    return float(8 * sum(tensor.n_bytes for tensor in matrices) / sum(int(t.n_elements) for t in matrices))
