"""A tiny checkpoint opened by the worker, and the outputs of transformers' own ``generate`` for it."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.choose_engine import EngineSetting
from llava_worker.engine import Sequence
from llava_worker.engine.transformers.checkpoint import read_checkpoint
from llava_worker.engine.transformers.processor import ModelProcessor
from llava_worker.job_sequence import make_sequence
from llava_worker.loaded_model import LoadedModel
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Question", "ReferenceFamily", "ServedFamily", "make_questions"]

Pixels = NDArray[np.uint8]  # [height, width, 3]


@dataclass(frozen=True)
class Question:
    """A request with one user message: first the images, then the text."""

    images: tuple[Pixels, ...]
    text: str


def make_questions(seed: int = 0) -> list[Question]:
    """Return requests with and without images, of different shapes and lengths."""
    rng = np.random.default_rng(seed)

    def image(width: int, height: int) -> Pixels:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    return [
        Question((image(70, 40),), "What is this?"),
        Question((image(30, 60), image(44, 33)), "Compare.\n\nNow"),
        Question((image(40, 128),), "\nWhy?"),
        Question((image(56, 56),), "Describe the image in one sentence, please."),
    ]


class ReferenceFamily:
    """A checkpoint that is opened only by transformers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # AutoProcessor would also load the video processor, which requires torchvision.
        self.processor: Any = ModelProcessor(folder, read_checkpoint(folder).config)._processor

    def inputs(self, question: Question) -> dict[str, Any]:
        """Return the inputs that transformers' processor and the checkpoint's chat template give."""
        images = [Image.fromarray(image) for image in question.images]
        template = self.folder / "chat_template.jinja"
        text = "<image>" * len(images) + question.text  # PaliGemma has no template
        if template.exists():
            parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question.text}]
            text = self.processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": parts}],
                chat_template=template.read_text(),
                tokenize=False,
                add_generation_prompt=True,
            )
        inputs = self.processor(
            text=[text], images=[images] if images else None, return_tensors="pt", add_special_tokens=False
        )
        inputs.pop("labels", None)
        return dict(inputs)

    def generated(self, question: Question, *, max_tokens: int = 24) -> list[int]:
        """Return the output of transformers' greedy ``generate``."""
        from transformers import AutoModelForImageTextToText

        model: Any = AutoModelForImageTextToText.from_pretrained(self.folder)
        inputs = self.inputs(question)
        output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return [int(token_id) for token_id in output[0, inputs["input_ids"].shape[1] :]]


class ServedFamily(ReferenceFamily):
    """A checkpoint that the worker has opened, by default with the transformers engine."""

    def __init__(self, folder: Path, *flags: str, engine: EngineSetting = "transformers") -> None:
        super().__init__(folder)
        settings = load_settings(["--model", str(folder), "--engine", engine, "--device", "cpu", *flags])
        self.model: LoadedModel = open_model(settings)

    def sequence(
        self,
        question: Question,
        *,
        seq_id: str = "one",
        output_ids: Items[int] = (),
        max_tokens: int = 24,
        temperature: float = 0.0,
        **sampling: Any,
    ) -> Sequence:
        """Return the sequence that the worker adds to the engine for this request."""
        preprocessed = self.preprocess(question.images, seq_id)
        images = [image for image, _ in preprocessed]
        params = SamplingParams(seed=7, temperature=temperature, max_tokens=max_tokens, **sampling)
        job = Job(
            job_id=seq_id,
            model="family",
            tenant="tenant",
            messages=(Message("user", (*images, question.text)),),
            sampling=params,
            cost=1.0,
        )
        assignment = Assignment(
            job=job,
            assignment_id=seq_id,
            token_ids=tuple(output_ids),
            text="",
            pixels={image.digest: pixels for image, pixels in preprocessed},
        )
        prompt = self.model.prompts.build(job)
        return make_sequence(assignment, prompt, context_length=self.model.engine.context_length)

    def preprocess(self, images: Items[Pixels], seq_id: str) -> list[tuple[ImageRef, bytes]]:
        """Return references to the images of a sequence, and their pixels, as the server sends them."""
        return [
            (
                ImageRef(
                    digest=f"{seq_id}-{index}",
                    num_tiles=1,
                    side=0,
                    width=image.shape[1],
                    height=image.shape[0],
                ),
                image.tobytes(),
            )
            for index, image in enumerate(images)
        ]

    def run(self, *sequences: Sequence) -> dict[str, list[int]]:
        """Run the sequences together and return their output tokens."""
        tokens: dict[str, list[int]] = {sequence.seq_id: [] for sequence in sequences}
        for sequence in sequences:
            self.model.engine.add(sequence)
        while self.model.engine.num_sequences:
            for output in self.model.engine.step():
                assert output.error is None, output.error
                if output.token_id is not None:
                    tokens[output.seq_id].append(output.token_id)
        return tokens
