"""A model that the worker has opened, with sequences for its engine, whatever the engine is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from typing import Any

from llava_wire.messages.assignment import Assignment
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.messages.sampling_params import Grammar, SamplingParams
from llava_worker.engine import EngineInterface, Sequence, StepOutput
from llava_worker.job_sequence import make_sequence
from llava_worker.loaded_model import LoadedModel

__all__ = ["EngineModel"]


class EngineModel:
    """A loaded model. Its engine must be empty at the end of each test."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @property
    def engine(self) -> EngineInterface:
        return self.model.engine

    def sequence(
        self,
        text: str = "Hi?",
        *,
        seq_id: str = "one",
        color: int | None = None,
        max_tokens: int = 8,
        output_ids: Items[int] = (),
        grammar: Grammar | None = None,
        **values: Any,
    ) -> Sequence:
        """Return the sequence that the worker would add for a chat. ``values`` are fields of SamplingParams.

        If ``color`` is set, the message contains an image of this gray level.
        """
        images = [] if color is None else [self._image(color)]
        pixels = {} if color is None else {images[0].digest: bytes([color]) * images[0].num_bytes}
        sampling = {"seed": 7, "temperature": 0.0, "ignore_eos": grammar is None} | values
        job = Job(
            job_id=seq_id,
            model=self.model.heartbeat.model,
            tenant="tenant",
            messages=(Message("user", (*images, text)),),
            sampling=SamplingParams(**sampling, max_tokens=max_tokens, grammar=grammar),
            cost=1.0,
        )
        assignment = Assignment(
            job=job, assignment_id=seq_id, token_ids=tuple(output_ids), text="", pixels=pixels
        )
        prompt = self.model.prompts.build(job)
        sequence = make_sequence(assignment, prompt, context_length=self.engine.context_length)
        if grammar is not None and self.model.grammars is not None:
            sequence.grammar = self.model.grammars.compile(grammar)
        return sequence

    def run(self, *sequences: Sequence) -> dict[str, list[StepOutput]]:
        """Add the sequences, run steps until the engine is empty, and return all outputs by sequence."""
        outputs: dict[str, list[StepOutput]] = {sequence.seq_id: [] for sequence in sequences}
        for sequence in sequences:
            self.engine.add(sequence)
        while self.engine.num_sequences:
            for output in self.engine.step():
                outputs.setdefault(output.seq_id, []).append(output)
        return outputs

    def tokens(self, *sequences: Sequence) -> dict[str, list[int]]:
        """Run the sequences and return their tokens."""
        return {seq_id: token_ids(outputs) for seq_id, outputs in self.run(*sequences).items()}

    def text(self, outputs: list[StepOutput]) -> str:
        tokenizer = self.model.tokenizer
        return b"".join(map(tokenizer.token_bytes, token_ids(outputs))).decode()

    def too_long(self) -> Sequence:
        """Return a sequence whose prompt fills the context."""
        sequence = self.sequence(seq_id="too long")
        num_copies = self.engine.context_length // len(sequence.prompt_ids) + 1
        return dataclasses.replace(sequence, prompt_ids=sequence.prompt_ids * num_copies)

    def _image(self, color: int) -> ImageRef:
        spec = self.model.heartbeat.image_spec
        if spec.fit == "rgb":
            return ImageRef(digest=f"gray {color}", num_tiles=1, side=0, width=60, height=40)
        return ImageRef(digest=f"gray {color}", num_tiles=1, side=spec.side, width=60, height=40)


def token_ids(outputs: list[StepOutput]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]
