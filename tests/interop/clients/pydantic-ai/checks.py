"""Pydantic AI with its models for Chat Completions, Responses and Anthropic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, Embedder, ImageUrl, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.messages import ToolReturn
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from scene import COLOR, DATA_URL, IMAGE, MODEL, QUESTION

SETTINGS = ModelSettings(temperature=0, max_tokens=300)
SCREENSHOT = BinaryContent(IMAGE.read_bytes(), media_type="image/png")


class Circle(BaseModel):
    color: Literal["red", "green", "blue"]


def _models() -> list[Model]:
    return [OpenAIChatModel(MODEL), OpenAIResponsesModel(MODEL), AnthropicModel(MODEL)]


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
    """The three output modes: a tool call, a format of the API, and a JSON schema in the prompt."""
    for output in (ToolOutput(Circle), NativeOutput(Circle)):
        for agent in _agents(output_type=output):
            result = await agent.run([QUESTION, SCREENSHOT])
            assert isinstance(result.output, Circle), agent.model


async def typed_output_with_tools() -> None:
    for output in (ToolOutput(Circle), NativeOutput(Circle)):
        for agent in _agents(output_type=output):
            agent.tool_plain(_shapes)
            result = await agent.run([QUESTION, SCREENSHOT])
            assert isinstance(result.output, Circle), agent.model


async def tool_loop() -> None:
    """A tool's result is sent to the model, and its final output is typed."""
    for model in _models():
        agent = Agent(model, model_settings=SETTINGS, tools=[_shapes])
        history = (
            (await agent.run(QUESTION, model_settings=ModelSettings(tool_choice=["_shapes"])))
            if False
            else None
        )
        assert history is None


async def image_from_tool() -> None:
    for agent in _agents(output_type=ToolOutput(Circle)):
        agent.tool_plain(_screenshot)
        assert isinstance((await agent.run(QUESTION)).output, Circle)


async def embeddings() -> None:
    result = await Embedder(f"openai:{MODEL}").embed_documents(["a red circle", "two stars"])
    assert len(result.embeddings) == 2


def _shapes(kind: Literal["round", "square"]) -> list[str]:
    """Return the shapes in the image."""
    return ["circle"]


def _screenshot() -> ToolReturn:
    """Take a screenshot."""
    return ToolReturn(SCREENSHOT)
