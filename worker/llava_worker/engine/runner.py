"""One step of the model: chunks of sequences in, tokens or a failure for each that is due some out."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.batch import Batch, Placement
from llava_worker.engine.blocks import BlockCopy
from llava_worker.engine.clock import StepClock
from llava_worker.engine.logprobs import Logprobs, tell_prompts
from llava_worker.engine.masks import MaskMaker, Masks
from llava_worker.engine.output import FailureCode, TokenLogprobs
from llava_worker.engine.sampler import Draw, sample
from llava_worker.engine.scheduler import Chunk
from llava_worker.engine.sequence import Pixels, Sequence
from llava_worker.engine.speculation import count_accepted
from llava_worker.engine.unit_vector import unit_vectors
from llava_worker.engine.vision_cache import PictureName, VisionCache
from llava_worker.model.attention import AttentionBackend
from llava_worker.model.decode_graphs import DecodeGraphs
from llava_worker.model.kv_cache import KVCache
from llava_worker.model.llava import Llava
from llava_worker.model.picture import PicturePlan
from llava_worker.model.upload import upload

__all__ = ["Choice", "ModelRunner", "StepResult"]

# Tiles that go through the vision tower at once: enough to fill the machine, little enough that its
# activations stay small beside the weights.
MAX_TILES_AT_ONCE = 16
_NO_TOKEN = -1  # so that one copy from the device tells all


@dataclass(frozen=True, slots=True)
class Choice:
    """``token_id`` is None where the sequence cannot go on: its grammar failed or there was no memory for it,
    as ``error`` tells, or the model's answer was not a number."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None  # where the sequence asks for them
    error: str | None = None
    error_code: FailureCode = "invalid_request"
    vector: bytes | None = None  # of an embedding, whose token is not wanted


@dataclass(frozen=True, slots=True)
class StepResult:
    """The tokens that the chunk's sequence gains, in order: one, and one more for each draft that was right.

    A None among them is the last.
    """

    chunk: Chunk
    choices: list[Choice]


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
        self._pictures = model.config.picture_layout()
        self._masks = MaskMaker()
        model.ranks.tell_cache(cache.num_blocks, cache.block_size)

    @torch.inference_mode()
    def copy(self, copies: Items[BlockCopy]) -> None:
        """One after another: a destination may be the source of the next."""
        with self.clock("prepare"):
            for copy in copies:
                rows = torch.arange(copy.num_rows, device=self.model.device)
                first, target = (block * self.cache.block_size for block in (copy.source, copy.destination))
                self.model.ranks.tell_copy(first, target, copy.num_rows)
                self.cache.copy_rows(first + rows, target + rows)

    @torch.inference_mode()
    def run(self, chunks: Items[Chunk]) -> list[StepResult]:
        """Compute the chunks; a result for each that reaches its sequence's last token.

        Raises torch.OutOfMemoryError, after which the same can be tried again with fewer.
        """
        with self.clock("prepare"):
            batch = Batch.build(chunks, block_size=self.cache.block_size, device=self.model.device)
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
            return []
        with self.clock("sample"):
            results = _choose(logits, batch.sampled, masks)
            return results if hidden is None else _with_vectors(results, hidden)

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
            return self.graphs.logits(batch.token_ids, batch.positions, rows.slots, rows.block_tables)

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last hidden states and the logits of the rows that are sampled, of which there may be none."""
        with self.clock("prepare"):
            x = self.model.embed(batch.token_ids)
        if batch.placements:
            with self.clock("encode"):
                self._place_pictures(x, batch.placements)
        with self.clock("forward"):
            self.model.ranks.tell_step(x, batch.positions, batch.rows)
            with self.model.ranks.in_step():
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
        stacked = upload(np.concatenate(tiles), self.model.device)
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
    plan: PicturePlan


def _choose(logits: Tensor, chunks: list[Chunk], masks: Masks | None) -> list[StepResult]:
    """Logits [rows, vocab]: of each chunk those after its sequence's last token and after each draft."""
    is_sound = logits.amax(-1).isfinite()  # a NaN anywhere in a row is the row's maximum
    logits.masked_fill_(~is_sound[:, None], 0)
    logprobs = _logprobs(logits, chunks)
    errors = {} if masks is None else masks.apply(logits)
    token_ids = sample(logits, [draw for chunk in chunks for draw in _draws(chunk)])
    told = {} if logprobs is None else logprobs.of(token_ids)
    choices = iter(
        [
            Choice(token_id if token_id >= 0 and row not in errors else None, told.get(row), errors.get(row))
            for row, token_id in enumerate(token_ids.where(is_sound, _NO_TOKEN).tolist())
        ]
    )
    results = []
    for chunk in chunks:
        own = list(islice(choices, 1 + len(chunk.drafts)))
        num_accepted = count_accepted(chunk.drafts, [choice.token_id for choice in own])
        results.append(StepResult(chunk, own[: num_accepted + 1]))
    return results


def _has_embeddings(chunks: Items[Chunk]) -> bool:
    return any(chunk.sequence.is_embedding for chunk in chunks)


def _with_vectors(results: list[StepResult], hidden: Tensor) -> list[StepResult]:
    """The results with the embeddings' vectors; hidden [rows, hidden] of the rows that are sampled."""
    asking = [result for result in results if result.chunk.sequence.is_embedding]
    if not asking:
        return results
    sequences = _row_sequences([result.chunk for result in results])
    rows = [row for row, sequence in enumerate(sequences) if sequence.is_embedding]  # one each: no drafts
    for result, vector in zip(asking, unit_vectors(hidden[rows]), strict=True):
        # Without a token: what is not a number has failed in its logits already.
        result.choices[:] = [replace(choice, vector=vector) for choice in result.choices]
    return results


def _row_sequences(chunks: list[Chunk]) -> list[Sequence]:
    """Whose each row of logits is."""
    return [chunk.sequence for chunk in chunks for _ in range(1 + len(chunk.drafts))]


def _draws(chunk: Chunk) -> list[Draw]:
    """One after the sequence's last token and one after each draft, as if those before were right."""
    sequence = chunk.sequence
    if sequence.steering is not None:
        sequence.steering.advance(sequence.output_ids)
    position = len(sequence.output_ids)
    return [
        Draw(sequence.sampling, position + index, sequence.steering) for index in range(1 + len(chunk.drafts))
    ]


def _logprobs(logits: Tensor, chunks: list[Chunk]) -> Logprobs | None:
    """Of those who ask, taken before anything changes the logits; None if nobody does."""
    num_top = [chunk.sequence.sampling.num_logprobs for chunk in chunks for _ in range(1 + len(chunk.drafts))]
    asking = {row: number for row, number in enumerate(num_top) if number is not None}
    return Logprobs(logits, list(asking), list(asking.values())) if asking else None


def _name(place: Placement) -> PictureName:
    return (place.chunk.sequence.cache_scope, place.image.content)
