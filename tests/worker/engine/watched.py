"""A model and a runner that keep every logit they compute, with its place, for tests to compare."""

from __future__ import annotations

from pathlib import Path

import torch
from llava_worker.engine.core.in_flight_step import InFlightStep
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision

CPU = torch.device("cpu")


class WatchedLlava(Llava):
    """Keeps the logits of every row of the latest forward pass, not only of those that are sampled."""

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, attention: object) -> torch.Tensor:
        hidden = super().__call__(x, positions, attention)
        self.latest = (positions.tolist(), self.logits(hidden))
        return hidden


class WatchedRunner(ModelRunner):
    """Notes which logits belong to which place of which sequence, and what kinds of batches there were."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self.computed: list[tuple[str, int, torch.Tensor]] = []  # (seq_id, position, [vocab])
        self.kinds: set[str] = set()

    def launch(self, chunks: list[Chunk], **rest: object) -> InFlightStep:
        is_long = [chunk.end - chunk.start > 1 for chunk in chunks]
        if any(is_long) and not all(is_long):
            self.kinds.add("mixed")
        if any(not chunk.is_last for chunk in chunks):
            self.kinds.add("chunked")
        flight = super().launch(chunks, **rest)
        packed = sorted(chunks, key=lambda chunk: chunk.end - chunk.start > 1)
        places = [(chunk.sequence.seq_id, at) for chunk in packed for at in range(chunk.start, chunk.end)]
        positions, logits = self.model.latest
        assert positions == [at for _, at in places]
        self.computed += [(*place, row) for place, row in zip(places, logits, strict=True)]
        return flight


def load(folder: Path, tower: Path | None = None) -> WatchedLlava:
    """In fp32, on the CPU. ``tower`` is the folder of a tower that the checkpoint only names."""
    config = read_config(folder, tower)
    image = read_image_config(folder, tower, vision=config.vision_config)
    model = WatchedLlava(config, image, precision=choose_precision("fp32", CPU), device=CPU)
    load_weights(model, folder, vision_tower=tower)
    return model
