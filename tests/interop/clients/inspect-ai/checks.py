"""Inspect: evaluations with images, tools and typed output, with the providers for OpenAI and Anthropic."""

from __future__ import annotations

import tempfile
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import Solver, generate, use_tools
from inspect_ai.tool import Tool, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel
from scene import COLOR, DATA_URL, IMAGE, MODEL, NO_IMAGE, QUESTION, Sentence

CONFIG = GenerateConfig(temperature=0, max_tokens=100, max_retries=0)
CONTENT: Any = [ContentImage(image=str(IMAGE)), ContentText(text=QUESTION)]
SAMPLE = Sample([ChatMessageUser(content=CONTENT)], target=COLOR)


class Heart(BaseModel):
    sentence: Sentence


@tool
def _look() -> Tool:
    async def execute(large: bool) -> list[ContentImage]:
        """Take a screenshot.

        Args:
            large: Whether the screenshot is large.
        """
        return [ContentImage(image=DATA_URL)]

    return execute


def _evaluate(model: Any, *solvers: Solver, sample: Sample = SAMPLE) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        [log] = eval(
            Task(dataset=[sample], solver=[*solvers], scorer=includes()),
            model=model,
            display="none",
            log_dir=folder,
            message_limit=6,
        )
        assert log.status == "success", log.error
        assert log.samples  # read from the folder on first access
    return log


def _accuracy(log: Any) -> float:
    return float(log.results.scores[0].metrics["accuracy"].value)


def image_input() -> None:
    for provider in ("openai", "anthropic"):
        model = get_model(f"{provider}/{MODEL}", config=CONFIG, memoize=False)
        assert _accuracy(_evaluate(model, generate())) == 1, provider
    model = get_model(f"openai/{MODEL}", config=CONFIG, responses_api=True, memoize=False)
    assert _accuracy(_evaluate(model, generate())) == 1


def tool_loop() -> None:
    for provider in ("openai", "anthropic"):
        model = get_model(f"{provider}/{MODEL}", config=CONFIG, memoize=False)
        log = _evaluate(model, use_tools(_look(), tool_choice="any"), generate(tool_calls="single"))
        assert any(message.role == "tool" for message in log.samples[0].messages), provider


def image_from_tool() -> None:
    """The model sees the image that the tool returned. The first message contains no image."""
    model = get_model(f"openai/{MODEL}", config=CONFIG, memoize=False)
    sample = Sample(QUESTION, target=COLOR)
    single = generate(tool_calls="single")
    log = _evaluate(
        model, use_tools(_look(), tool_choice="any"), single, use_tools(), generate(), sample=sample
    )
    assert NO_IMAGE not in (log.samples[0].output.completion or NO_IMAGE)


def typed_output() -> None:
    schema = ResponseSchema(name="heart", json_schema=json_schema(Heart), strict=True)
    config = CONFIG.merge(GenerateConfig(response_schema=schema))
    log = _evaluate(get_model(f"openai/{MODEL}", config=config, memoize=False), generate())
    Heart.model_validate_json(log.samples[0].output.completion)
