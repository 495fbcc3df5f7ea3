"""One step of the model: chunks of sequences in, tokens or a failure for each that is due some out.

The host only gives orders here. It waits for the device where a step is read, and in one with grammars,
embeddings or log-probabilities of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.core.batch import Batch, Placement
from llava_worker.engine.core.block_manager import BlockCopy
from llava_worker.engine.core.encoder_cache import PictureName, VisionCache
from llava_worker.engine.core.in_flight_step import Flight, StepResult, landed
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Pixels, Sequence
from llava_worker.engine.core.step_timer import StepClock
from llava_worker.engine.sampling.grammar_bitmask import MaskMaker
from llava_worker.engine.sampling.logprobs import tell_prompts
from llava_worker.engine.sampling.pooling import unit_vectors
from llava_worker.engine.sampling.sampled_tokens import Chosen
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.config.image_grid import ImagePlan
from llava_worker.model.device_copy import copy_to_device
from llava_worker.model.gpu.decode_graphs import DecodeGraphs
from llava_worker.model.llava import Llava

__all__ = ["ModelRunner"]

# Tiles that go through the vision tower at once: enough to fill the machine, little enough that its
# activations stay small beside the weights.
MAX_TILES_AT_ONCE = 16


class ModelRunner:
    """Holds the model and its caches; knows nothing of who comes next."""

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, vision_cache: VisionCache
    ) -> None:
        self.graphs: DecodeGraphs | None = None  # recordings of decoding with this model and cache
        self.encode: Callable[[Tensor], Tensor] = model.encode  # or a recording of it
        self.model = model
        self.cache = cache
        self.vision_cache = vision_cache
        self.num_encoded_images = 0
        self.clock = StepClock()
        self.backend = backend
        self._pictures = model.config.image_layout()
        self._masks = MaskMaker()
        model.ranks.send_cache(cache.num_blocks, cache.block_size)

    @torch.inference_mode()
    def copy(self, copies: Items[BlockCopy]) -> None:
        """One after another: a destination may be the source of the next."""
        with self.clock("prepare"):
            for copy in copies:
                rows = torch.arange(copy.num_rows, device=self.model.device)
                first, target = (block * self.cache.block_size for block in (copy.source, copy.destination))
                self.model.ranks.send_copy(first, target, copy.num_rows)
                self.cache.copy_rows(first + rows, target + rows)

    def run(self, chunks: list[Chunk]) -> list[StepResult]:
        """Compute the chunks and wait for it; as ``launch``."""
        return self.launch(chunks).read()

    @torch.inference_mode()
    def launch(self, chunks: list[Chunk], *, after: Flight | None = None) -> Flight:
        """Tell the device to compute the chunks. Behind the step ``after`` all of them must be ahead: it need
        not be over, and gives them its tokens on the device.

        Raises torch.OutOfMemoryError, after which the same can be tried again with fewer.
        """
        with self.clock("prepare"):
            batch = Batch.build(chunks, block_size=self.cache.block_size, device=self.model.device)
            if after is not None:
                batch = replace(batch, token_ids=after.token_ids_for(batch.sampled))
        masks = self._masks.begin(_row_sequences(batch.sampled), self.model.config.text_config.vocab_size)
        hidden = None
        try:
            logits = self._replay(batch)
            if logits is None:
                hidden, logits = self._compute(batch)
        finally:
            if masks is not None:
                masks.wait()  # the same sequences may come again at once, if memory was short
        if not batch.sampled:
            return landed(chunks, [])
        with self.clock("sample"):
            # An embedding's row is followed by nothing, so its vector may be waited for.
            vectors = {} if hidden is None else _vectors(batch.sampled, hidden)
            chosen = Chosen(logits, batch.sampled, masks, vectors)
        return Flight(chunks, chosen.results, batch.sampled, chosen.token_ids)

    @torch.inference_mode()
    def embed_pictures(self, sequences: Items[Sequence]) -> list[bytes | None]:
        """Of each one's one picture the mean of what the decoder would see of it, as ``unit_vectors``.

        Raises torch.OutOfMemoryError.
        """
        places = [
            Placement(Chunk(each, 0, each.images[0].length), each.images[0], 0, 0, each.images[0].length)
            for each in sequences
        ]
        with self.clock("encode"):
            features = self._features_of(places)
            return unit_vectors(torch.stack([features[_name(place)].double().mean(0) for place in places]))

    def shed(self) -> None:
        """Give back what memory can be done without."""
        self.vision_cache.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _replay(self, batch: Batch) -> Tensor | None:
        """Logits by a recording; None if there is none of such a batch."""
        if self.graphs is None or not batch.is_decoding or _has_embeddings(batch.sampled):
            return None
        with self.clock("forward"):
            rows = batch.rows
            return self.graphs.logits(batch.token_ids, batch.positions, rows.slot_mapping, rows.block_tables)

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last hidden states and the logits of the rows that are sampled, of which there may be none."""
        with self.clock("prepare"):
            x = self.model.embed(batch.token_ids)
        if batch.placements:
            with self.clock("encode"):
                self._place_pictures(x, batch.placements)
        with self.clock("forward"):
            self.model.ranks.send_step(x, batch.positions, batch.rows)
            with self.model.ranks.collective_step():
                hidden = self.model(x, batch.positions, self.backend.plan(batch.rows, self.cache))
            sampled = hidden[batch.sampled_rows]
            logits = self.model.logits(sampled) if batch.sampled else sampled
        if batch.prompt_rows:
            with self.clock("sample"):
                tell_prompts(self.model, hidden, batch.prompt_rows)
        return sampled, logits

    def forget(self, sequence: Sequence) -> None:
        """Drop what is remembered of the sequence's pictures."""
        for image in sequence.images:
            self.vision_cache.drop((sequence.cache_scope, image.content))

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
            known = self.vision_cache.get(name, is_first=place.first == 0)
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
        stacked = copy_to_device(np.concatenate(tiles), self.model.device)
        encoded = torch.cat([self.encode(part) for part in torch.split(stacked, MAX_TILES_AT_ONCE)])
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
    plan: ImagePlan


def _has_embeddings(chunks: Items[Chunk]) -> bool:
    return any(chunk.sequence.is_embedding for chunk in chunks)


def _vectors(chunks: Items[Chunk], hidden: Tensor) -> dict[int, bytes | None]:
    """Of embeddings, by row; hidden [rows, hidden] of the rows that are sampled."""
    rows = [row for row, sequence in enumerate(_row_sequences(chunks)) if sequence.is_embedding]
    return dict(zip(rows, unit_vectors(hidden[rows]), strict=True)) if rows else {}


def _row_sequences(chunks: Items[Chunk]) -> list[Sequence]:
    """Whose each row of logits is."""
    return [chunk.sequence for chunk in chunks for _ in range(1 + len(chunk.drafts))]


def _name(place: Placement) -> PictureName:
    return (place.chunk.sequence.cache_scope, place.image.content)
