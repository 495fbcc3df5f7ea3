"""Two ranks connected by gloo: one in this process and one in a child process."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import torch
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.engine.parallel.rank_group import RankGroup, RankSetup
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.tensor_parallel import TensorParallel

CPU = torch.device("cpu")


class TwoRanks:
    """A group of two ranks.

    There can be only one group at a time, because torch has only one default process group.
    """

    def __init__(
        self,
        folder: Path,
        *,
        precision: str = "fp32",
        kv_cache_dtype: str = "auto",
        base: Path | None = None,
        attention: str = "sdpa",
        **group: str,
    ) -> None:
        self.lost = threading.Event()
        setup = RankSetup(
            index=0,
            size=2,
            port=0,
            device="cpu",
            precision=precision,
            attention=attention,
            kv_cache_dtype=kv_cache_dtype,
            folder=str(folder),
            config_folder=str(folder),
            vision_tower=None,
            base=str(base) if base else None,
            allow_pickle=False,
            num_threads=1,
            log_level=logging.WARNING,
        )
        self.group = RankGroup.start(setup, self.lost.set, **group)
        self.model = load(folder, self.group.ranks, precision=precision, base=base)


def load(
    folder: Path,
    ranks: TensorParallel | None = None,
    *,
    precision: str = "fp32",
    base: Path | None = None,
) -> Llava:
    """Load the shard of the first rank, or the whole model if ``ranks`` is None."""
    ranks = ranks or TensorParallel()
    config, image = read_config(folder).shard(ranks.size), read_image_config(folder)
    model = Llava(config, image, precision=choose_precision(precision, CPU), device=CPU, ranks=ranks)
    load_weights(model, folder, base=base)
    return model


class RecordingRunner(ModelRunner):
    """Records the logits of every step, keyed by sequence ID."""

    recorded: dict[str, list[torch.Tensor]]

    def _compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, logits = super()._compute(batch)
        rows = [chunk.sequence.seq_id for chunk in batch.sampled for _ in range(chunk.num_sampled)]
        for name, row in zip(rows, logits, strict=True):
            self.recorded[name].append(row.clone())
        return hidden, logits


def logits_of(engine: Engine, sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    """Run the sequences and return the logits of their sampled tokens.

    The engine must have a RecordingRunner.

    """
    runner = engine._runner
    assert isinstance(runner, RecordingRunner)
    runner.recorded = {sequence.seq_id: [] for sequence in sequences}
    for sequence in sequences:
        engine.add(sequence)
    while engine.num_sequences:
        engine.step()
        engine.check()
    return {name: torch.stack(rows) for name, rows in runner.recorded.items()}
