"""The model runner. It runs one forward pass over chunks of sequences and returns sampled tokens or errors.

The host launches steps asynchronously. It waits for the device when it reads a step. If a step includes
grammars, embeddings or prompt log-probabilities, the host also waits when it launches the step.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.core.block_manager import BlockCopy
from llava_worker.engine.core.encoder_cache import EncoderCache, ImageKey
from llava_worker.engine.core.input_batch import Batch, FeatureSpan, PaddedTables
from llava_worker.engine.core.model_runner_output import ChunkResult
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Pixels, Sequence
from llava_worker.engine.core.step_timer import StepTimer
from llava_worker.engine.sampling.grammar_bitmask import BitmaskBuilder
from llava_worker.engine.sampling.logprobs import add_prompt_logprobs
from llava_worker.engine.sampling.pooling import pack_vectors
from llava_worker.engine.sampling.sampler import Sampler
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.config.image_grid import ImagePlan
from llava_worker.model.device_copy import copy_to_device
from llava_worker.model.gpu.step_graphs import StepGraphs
from llava_worker.model.llava import Llava

__all__ = ["InFlightStep", "ModelRunner", "completed"]

# Maximum number of tiles per pass of the vision tower. It is large enough to fully utilize the device, but
# small enough that the activations need much less memory than the weights.
MAX_TILES_PER_PASS = 16


@dataclass(frozen=True, slots=True)
class InFlightStep:
    """A launched step.

    ``read`` waits for the device and returns a result for each chunk that ends with its sequence's last
    token. ``token_ids`` contains the sampled tokens on the device, int64 [sampled rows, including drafts]. If
    no valid token could be sampled for a row, its entry is an arbitrary token. If ``token_ids`` is set,
    another step can be launched before this one is read.
    """

    chunks: list[Chunk]
    read: Callable[[], list[ChunkResult]]
    sampled: Items[Chunk] = ()
    token_ids: Tensor | None = None

    def token_ids_for(self, chunks: Items[Chunk]) -> Tensor:
        """Return the tokens that this step sampled for the sequences of ``chunks``.

        This step must not contain drafts.
        """
        assert self.token_ids is not None
        sampled = [chunk.sequence for chunk in self.sampled]
        sequences = [chunk.sequence for chunk in chunks]
        if sequences == sampled:
            return self.token_ids
        row_of = {sequence: row for row, sequence in enumerate(sampled)}
        rows = [row_of[sequence] for sequence in sequences]
        return self.token_ids[copy_to_device(np.array(rows), self.token_ids.device)]


def completed(chunks: list[Chunk], results: list[ChunkResult]) -> InFlightStep:
    """Return a step with known results. It must be read before another step is launched."""
    return InFlightStep(chunks, lambda: results)


class ModelRunner:
    """Runs the model and manages its caches, but does not schedule steps."""

    def __init__(
        self, model: Llava, cache: KVCache, backend: AttentionBackend, encoder_cache: EncoderCache
    ) -> None:
        # CUDA graphs for this model and cache: for steps that only decode, and for other short steps
        self.graphs: StepGraphs | None = None
        self.mixed_graphs: StepGraphs | None = None
        self.encode: Callable[[Tensor], Tensor] = model.encode  # replaced once CUDA graphs have been captured
        self.model = model
        self.cache = cache
        self.encoder_cache = encoder_cache
        self.num_encoded_images = 0
        self.timer = StepTimer()
        self.backend = backend
        self._image_layout = model.config.image_layout()
        self._tables = PaddedTables()
        self._bitmasks = BitmaskBuilder()
        self._sampler = Sampler()
        model.ranks.send_cache(cache.num_blocks, cache.block_size)

    @torch.inference_mode()
    def copy_blocks(self, copies: Items[BlockCopy]) -> None:
        """Copy blocks in the given order. A destination may be the source of a later copy."""
        with self.timer("prepare"):
            for copy in copies:
                rows = torch.arange(copy.num_rows, device=self.model.device)
                first, target = (block * self.cache.block_size for block in (copy.source, copy.destination))
                self.model.ranks.send_copy(first, target, copy.num_rows)
                self.cache.copy_rows(first + rows, target + rows)

    def run(self, chunks: list[Chunk]) -> list[ChunkResult]:
        """Launch a step and return its results."""
        return self.launch(chunks).read()

    @torch.inference_mode()
    def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        """Launch a forward pass that computes the chunks.

        If ``after`` is set, the input consists of the tokens sampled by that earlier step, which may still be
        running. These tokens stay on the device. In this case, ``is_ahead`` must be true for all chunks.

        Raises torch.OutOfMemoryError if the step does not fit in memory. The caller can then launch a subset
        of the chunks.
        """
        with self.timer("prepare"):
            batch = Batch.build(
                chunks,
                block_size=self.cache.block_size,
                device=self.model.device,
                token_ids=None if after is None else after.token_ids_for(chunks),
                tables=self._tables,
            )
        bitmask = self._bitmasks.start(
            _sequences_of_rows(batch.sampled), self.model.config.text_config.vocab_size
        )
        hidden = None
        try:
            logits = self._replay(batch)
            if logits is None:
                hidden, logits = self._compute(batch)
        finally:
            if bitmask is not None:
                bitmask.wait()  # the caller may relaunch the sequences right after an out-of-memory error
        if not batch.sampled:
            return completed(chunks, [])
        with self.timer("sample"):
            # A step with embeddings is always read before the next step is launched, so waiting for the
            # vectors here costs nothing.
            vectors = {} if hidden is None else _embeddings(batch.sampled, hidden)
            sampled = self._sampler.sample(logits, batch.sampled, bitmask=bitmask, vectors=vectors)
        return InFlightStep(chunks, sampled.results, batch.sampled, sampled.token_ids)

    @torch.inference_mode()
    def embed_images(self, sequences: Items[Sequence]) -> list[bytes | None]:
        """For each sequence, return the mean of its projected image features, packed by ``pack_vectors``.

        Raises torch.OutOfMemoryError if the images do not fit in memory.
        """
        spans = [
            FeatureSpan(sequence, sequence.images[0], 0, 0, sequence.images[0].length)
            for sequence in sequences
        ]
        with self.timer("encode"):
            features = self._features_of(spans)
            means = torch.stack([features[_key(span)].double().mean(0) for span in spans])
            return pack_vectors(means, [sequence.is_normalized for sequence in sequences])

    def release_memory(self) -> None:
        """Clear the caches that can be rebuilt."""
        self.encoder_cache.clear()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def drop_features(self, sequence: Sequence) -> None:
        """Remove the sequence's images from the encoder cache."""
        for image in sequence.images:
            self.encoder_cache.drop((sequence.cache_scope, image.content))

    def _replay(self, batch: Batch) -> Tensor | None:
        """Compute the logits by replaying a CUDA graph. Return None if there is no suitable graph."""
        graphs = self.graphs if batch.row_of_token is None else self.mixed_graphs
        if graphs is None or not batch.is_short or len(batch.token_ids) > graphs.max_tokens:
            return None
        with self.timer("forward"):
            tables, slots = batch.rows.block_tables, batch.rows.slot_mapping
            if batch.row_of_token is None:
                return graphs.logits(batch.token_ids, batch.positions, slots, tables)
            tables = tables[batch.row_of_token]
            logits = graphs.logits(batch.token_ids, batch.positions, slots, tables)
            return logits[batch.sampled_rows]

    def _compute(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the last hidden states and the logits of the sampled rows.

        Both are empty if there are no such rows.
        """
        with self.timer("prepare"):
            x = self.model.embed(batch.token_ids)
        if batch.feature_spans:
            with self.timer("encode"):
                self._insert_features(x, batch.feature_spans)
        with self.timer("forward"):
            self.model.ranks.send_step(x, batch.positions, batch.rows)
            with self.model.ranks.collective_step():
                hidden = self.model(x, batch.positions, self.backend.plan(batch.rows, self.cache))
            sampled = hidden[batch.sampled_rows]
            logits = self.model.logits(sampled) if batch.sampled else sampled
        if batch.prompt_rows:
            with self.timer("sample"):
                add_prompt_logprobs(self.model, hidden, batch.prompt_rows)
        return sampled, logits

    def _insert_features(self, x: Tensor, spans: list[FeatureSpan]) -> None:  # x [tokens, hidden]
        features = self._features_of(spans)
        for span in spans:
            x[span.row : span.row + span.length] = features[_key(span)][span.first : span.first + span.length]

    def _features_of(self, spans: list[FeatureSpan]) -> dict[ImageKey, Tensor]:
        """Return the features of each image, [tokens, hidden]. Images that are not cached are encoded."""
        features: dict[ImageKey, Tensor] = {}
        missing: dict[ImageKey, _EncoderInput] = {}
        for span in spans:
            key = _key(span)
            if key in features or key in missing:
                continue
            cached = self.encoder_cache.get(key, is_first=span.first == 0)
            if cached is None:
                pixels = span.sequence.pixels[span.sequence.images.index(span.image)]
                plan = self._image_layout.plan(span.image.width, span.image.height)
                missing[key] = _EncoderInput(pixels, plan)
            else:
                features[key] = cached
        for key, encoded in self._encode(missing).items():
            features[key] = encoded
            self.encoder_cache.put(key, encoded)
        return features

    def _encode(self, images: dict[ImageKey, _EncoderInput]) -> dict[ImageKey, Tensor]:
        if not images:
            return {}
        side = self._image_layout.side
        tiles = [
            np.frombuffer(image.pixels, dtype=np.uint8).reshape(-1, side, side, 3)
            for image in images.values()
        ]
        stacked = copy_to_device(np.concatenate(tiles), self.model.device)
        encoded = torch.cat([self.encode(part) for part in torch.split(stacked, MAX_TILES_PER_PASS)])
        parts = torch.split(encoded, [len(part) for part in tiles])  # each [tiles, tokens, hidden]
        self.num_encoded_images += len(images)
        # The features are cloned so that evicting an image frees its memory.
        return {
            key: self.model.assemble(part, image.plan).clone()
            for (key, image), part in zip(images.items(), parts, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _EncoderInput:
    """An image that has to be encoded."""

    pixels: Pixels
    plan: ImagePlan


def _embeddings(chunks: Items[Chunk], hidden: Tensor) -> dict[int, bytes | None]:
    """Return the vectors of embedding sequences, keyed by row. ``hidden`` is [sampled rows, hidden]."""
    embedded = {row: each for row, each in enumerate(_sequences_of_rows(chunks)) if each.is_embedding}
    if not embedded:
        return {}
    rows = list(embedded)
    vectors = pack_vectors(hidden[rows], [sequence.is_normalized for sequence in embedded.values()])
    return dict(zip(rows, vectors, strict=True))


def _sequences_of_rows(chunks: Items[Chunk]) -> list[Sequence]:
    """Return the sequence to which each row of logits belongs."""
    return [sequence for chunk in chunks for sequence in [chunk.sequence] * (1 + len(chunk.drafts))]


def _key(span: FeatureSpan) -> ImageKey:
    return (span.sequence.cache_scope, span.image.content)
