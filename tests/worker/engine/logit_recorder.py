"""A model and a model runner that record all logits and their positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import InFlightStep, ModelRunner
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

CPU = torch.device("cpu")


class RecordingLlava(Llava):
    """Records the logits of all rows of the latest forward pass, even if no token is sampled for a row."""

    latest: tuple[list[int], torch.Tensor]  # positions, logits

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, attention: Any) -> torch.Tensor:
        hidden = super().__call__(x, positions, attention)
        self.latest = (positions.tolist(), self.logits(hidden))
        return hidden


class RecordingRunner(ModelRunner):
    """Records the logits of a RecordingLlava, their sequences and positions, and the kinds of batches."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.computed: list[tuple[str, int, torch.Tensor]] = []  # (seq_id, position, [vocab])
        self.kinds: set[str] = set()

    def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        is_long = [chunk.end - chunk.start > 1 for chunk in chunks]
        if any(is_long) and not all(is_long):
            self.kinds.add("mixed")
        if any(not chunk.is_last for chunk in chunks):
            self.kinds.add("chunked")
        step = super().launch(chunks, after=after)
        packed = sorted(chunks, key=lambda chunk: chunk.end - chunk.start > 1)
        rows = [(chunk.sequence.seq_id, index) for chunk in packed for index in range(chunk.start, chunk.end)]
        assert isinstance(self.model, RecordingLlava)
        positions, logits = self.model.latest
        assert positions == [index for _, index in rows]
        self.computed += [(*row, row_logits) for row, row_logits in zip(rows, logits, strict=True)]
        return step


def recorder_of(engine: Engine) -> RecordingRunner:
    runner = engine._runner
    assert isinstance(runner, RecordingRunner)
    return runner


def load_recording(folder: Path, tower: Path | None = None) -> RecordingLlava:
    """Load a model in fp32 on the CPU. ``tower`` is a folder that contains a separate vision tower."""
    config = read_config(folder, tower)
    image = read_image_config(folder, tower, vision=config.vision_config)
    model = RecordingLlava(config, image, precision=choose_precision("fp32", CPU), device=CPU)
    load_weights(model, folder, vision_tower=tower)
    return model
