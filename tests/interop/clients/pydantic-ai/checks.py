"""Pydantic AI with its models for Chat Completions, Responses and Anthropic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, Embedder, ImageUrl, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from scene import COLOR, DATA_URL, IMAGE, MODEL, NO_IMAGE, QUESTION, Sentence

SETTINGS = ModelSettings(temperature=0, max_tokens=300)
SCREENSHOT = BinaryContent(IMAGE.read_bytes(), media_type="image/png")


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


def _models() -> list[Model]:
    # The client derives the features of a model from its name.
    profile = ModelProfile(supports_json_schema_output=True)
    return [OpenAIChatModel(MODEL), OpenAIResponsesModel(MODEL), AnthropicModel(MODEL, profile=profile)]


def _agents(**options: Any) -> list[Agent[None, Any]]:
    return [Agent(model, model_settings=SETTINGS, retries=0, **options) for model in _models()]


async def image_input() -> None:
    for agent in _agents():
        assert COLOR in (await agent.run([QUESTION, SCREENSHOT])).output
        assert COLOR in (await agent.run([QUESTION, ImageUrl(DATA_URL)])).output


async def streaming() -> None:
    for agent in _agents():
        async with agent.run_stream([QUESTION, SCREENSHOT]) as result:
            text = "".join([part async for part in result.stream_text(delta=True)])
        assert COLOR in text


async def typed_output() -> None:
    """Output as a tool call, and in a format of the API."""
    for output in (ToolOutput(Heart), NativeOutput(Heart)):
        for agent in _agents(output_type=output):
            assert isinstance((await agent.run([QUESTION, SCREENSHOT])).output, Heart)


async def tool_loop() -> None:
    """The first response is a tool call, the second the final text."""
    for agent in _agents(tools=[_shapes], capabilities=[_ToolFirst()]):
        result = await agent.run([QUESTION, SCREENSHOT])
        assert result.output and len(result.all_messages()) == 4


async def typed_output_with_tools() -> None:
    for output in (ToolOutput(Heart), NativeOutput(Heart)):
        for agent in _agents(output_type=output, tools=[_shapes], capabilities=[_ToolFirst()]):
            assert isinstance((await agent.run([QUESTION, SCREENSHOT])).output, Heart)


async def image_from_tool() -> None:
    for agent in _agents(tools=[_screenshot], capabilities=[_ToolFirst()]):
        result = await agent.run(QUESTION)
        assert len(result.all_messages()) == 4 and NO_IMAGE not in result.output, agent.model


async def embeddings() -> None:
    result = await Embedder(f"openai:{MODEL}").embed_documents(["a red circle", "two stars"])
    assert len(result.embeddings) == 2


class _ToolFirst(AbstractCapability[None]):
    """Require a call of a function tool in the first step. Later steps end the run."""

    def get_model_settings(self) -> Any:
        return lambda context: ModelSettings(tool_choice="required" if context.run_step == 1 else "none")


def _shapes(kind: Literal["round", "square"]) -> list[str]:
    """Return the shapes in the image."""
    return ["circle"]


def _screenshot() -> BinaryContent:
    """Take a screenshot."""
    return SCREENSHOT
