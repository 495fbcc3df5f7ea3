"""One step of the model: chunks of sequences in, a token or a failure for each that is due one out."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.batch import Batch, Placement
from llava_worker.engine.logprobs import Logprobs
from llava_worker.engine.output import TokenLogprobs
from llava_worker.engine.sampler import Draw, sample
from llava_worker.engine.scheduler import Chunk
from llava_worker.engine.sequence import Pixels, Sequence
from llava_worker.engine.vision_cache import PictureName, VisionCache
from llava_worker.model.attention import AttentionBackend
from llava_worker.model.kv_cache import KVCache
from llava_worker.model.llava import Llava
from llava_worker.model.picture import PicturePlan

__all__ = ["ModelRunner", "StepResult"]

# Tiles that go through the vision tower at once: enough to fill the machine, little enough that its
# activations stay small beside the weights.
MAX_TILES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class StepResult:
    """``token_id`` is None where the model's answer was not a number: the sequence cannot go on."""

    sequence: Sequence
    token_id: int | None
    logprobs: TokenLogprobs | None = None  # where the sequence asks for them


class ModelRunner:
    """Holds the model and its caches; knows nothing of who comes next."""

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, vision_cache: VisionCache
    ) -> None:
        self.model = model
        self.cache = cache
        self.vision_cache = vision_cache
        self.num_encoded_images = 0
        self._backend = backend
        self._pictures = model.config.picture_layout()

    @torch.inference_mode()
    def run(self, chunks: Items[Chunk]) -> list[StepResult]:
        """Compute the chunks; one result for each that reaches its sequence's last token."""
        batch = Batch.build(chunks, block_size=self.cache.block_size, device=self.model.device)
        x = self.model.embed(batch.token_ids)
        self._place_pictures(x, batch.placements)
        hidden = self.model(x, batch.positions, self._backend.plan(batch.rows, self.cache))
        if not batch.sampled:
            return []
        logits = self.model.logits(hidden[batch.last_rows])
        return self._choose(logits, [chunk.sequence for chunk in batch.sampled])

    def forget(self, sequence: Sequence) -> None:
        """Drop what is remembered of the sequence's pictures."""
        for image in sequence.images:
            self.vision_cache.drop((sequence.cache_scope, image.content))

    def _choose(self, logits: Tensor, sequences: list[Sequence]) -> list[StepResult]:
        is_sound = logits.amax(-1).isfinite()  # a NaN anywhere in a row is the row's maximum
        logits[~is_sound] = 0
        logprobs = _logprobs(logits, sequences)
        token_ids = sample(logits, [_draw(sequence) for sequence in sequences])
        told = {} if logprobs is None else logprobs.of(token_ids)
        return [
            StepResult(sequence, token_id if sound else None, told.get(row))
            for row, (sequence, token_id, sound) in enumerate(
                zip(sequences, token_ids.tolist(), is_sound.tolist(), strict=True)
            )
        ]

    def _place_pictures(self, x: Tensor, placements: list[Placement]) -> None:  # x [tokens, hidden]
        features = self._features_of(placements)
        for place in placements:
            rows = features[_name(place)][place.first : place.first + place.length]
            x[place.row : place.row + place.length] = rows

    def _features_of(self, placements: list[Placement]) -> dict[PictureName, Tensor]:
        """Each picture's features, [tokens, hidden]: remembered, or encoded now, each once."""
        features: dict[PictureName, Tensor] = {}
        new: dict[PictureName, _Picture] = {}
        for place in placements:
            name = _name(place)
            if name in features or name in new:
                continue
            known = self.vision_cache.get(name)
            if known is None:
                sequence = place.chunk.sequence
                pixels = sequence.pixels[sequence.images.index(place.image)]
                new[name] = _Picture(pixels, self._pictures.plan(place.image.width, place.image.height))
            else:
                features[name] = known
        for name, encoded in self._encode(new).items():
            features[name] = encoded
            self.vision_cache.put(name, encoded)
        return features

    def _encode(self, pictures: dict[PictureName, _Picture]) -> dict[PictureName, Tensor]:
        if not pictures:
            return {}
        side = self._pictures.side
        tiles = [
            np.frombuffer(picture.pixels, dtype=np.uint8).reshape(-1, side, side, 3)
            for picture in pictures.values()
        ]
        stacked = torch.from_numpy(np.concatenate(tiles)).to(self.model.device)
        encoded = torch.cat([self.model.encode(part) for part in torch.split(stacked, MAX_TILES_AT_ONCE)])
        parts = torch.split(encoded, [len(part) for part in tiles])  # each [tiles, tokens, hidden]
        self.num_encoded_images += len(pictures)
        # A copy of its own each, so that evicting one picture frees its memory.
        return {
            name: self.model.assemble(part, picture.plan).clone()
            for (name, picture), part in zip(pictures.items(), parts, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _Picture:
    """One that is to be encoded."""

    pixels: Pixels
    plan: PicturePlan


def _draw(sequence: Sequence) -> Draw:
    if sequence.steering is not None:
        sequence.steering.advance(sequence.output_ids)
    return Draw(sequence.sampling, len(sequence.output_ids), sequence.steering)


def _logprobs(logits: Tensor, sequences: list[Sequence]) -> Logprobs | None:
    """Of those who ask, taken before anything changes the logits; None if nobody does."""
    asking = {
        row: num_top
        for row, sequence in enumerate(sequences)
        if (num_top := sequence.sampling.num_logprobs) is not None
    }
    return Logprobs(logits, list(asking), list(asking.values())) if asking else None


def _name(place: Placement) -> PictureName:
    return (place.chunk.sequence.cache_scope, place.image.content)
