"""Which tokens the grammars allow in one step: found beside the model's forward pass, laid over its logits.

A sequence's last token is known when the pass begins, so its mask needs nothing of the pass. The library
computes without Python's lock, as torch does: while there is a core to spare a mask costs a step no time.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from llava_worker.engine.core.sequence import Sequence

__all__ = ["MaskMaker", "Masks"]

_NUM_THREADS = 4


class Masks:
    """Of the rows of logits whose sequences have a grammar. Not usable before its threads are done."""

    def __init__(self, rows: Items[int], sequences: Items[Sequence], vocab_size: int) -> None:
        self._rows = rows
        self._sequences = sequences
        self._vocab_size = vocab_size
        self._bits = np.full((len(rows), (vocab_size + 31) // 32), -1, dtype=np.int32)
        self._work: list[Future[None]] = []

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Return at once; nobody else may touch the sequences until `apply`."""
        self._work = [pool.submit(self._fill, index) for index in range(len(self._rows))]

    def wait(self) -> None:
        """Until nobody in here touches the sequences any more."""
        for work in self._work:
            work.result()

    def apply(self, logits: Tensor) -> dict[int, str]:
        """Set what is not allowed to minus infinity; logits fp32 [rows, vocab].

        Returns the rows whose grammar failed, left as they are, with the reason.
        """
        self.wait()
        words = torch.from_numpy(self._bits).to(logits.device)
        places = torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = ((words[:, :, None] >> places) & 1).flatten(1)[:, : self._vocab_size]
        rows = list(self._rows)
        logits[rows] = logits[rows].masked_fill(allowed == 0, -torch.inf)
        return {
            row: sequence.matcher.error
            for row, sequence in zip(self._rows, self._sequences, strict=True)
            if sequence.matcher is not None and sequence.matcher.error is not None
        }

    def _fill(self, index: int) -> None:
        sequence, row = self._sequences[index], self._bits[index]
        assert sequence.matcher is not None
        sequence.matcher.advance(sequence.output_ids)
        if sequence.matcher.error is None:
            sequence.matcher.fill(row)
        if sequence.matcher.error is not None:
            row[:] = -1


class MaskMaker:
    """The threads. Started with the first grammar."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, sequences: Items[Sequence], vocab_size: int) -> Masks | None:
        """``sequences`` are those that the rows of logits belong to; None if none has a grammar."""
        rows = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if not rows:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="masks")
        masks = Masks(rows, [sequences[row] for row in rows], vocab_size)
        masks.begin(self._pool)
        return masks
