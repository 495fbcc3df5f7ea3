"""The OpenAI Agents SDK with the Responses API (its default) and Chat Completions."""

from __future__ import annotations

from typing import Any, Literal

from agents import (
    Agent,
    AsyncOpenAI,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    ToolOutputImage,
    function_tool,
    set_tracing_disabled,
)
from agents.models.interface import Model
from pydantic import BaseModel
from scene import COLOR, DATA_URL, IMAGE_TOKENS, MODEL, QUESTION, Sentence

set_tracing_disabled(True)
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 200}
USER: Any = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ],
    }
]
_calls: list[str] = []


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


@function_tool
def _shapes(kind: Literal["round", "square"]) -> str:
    """Return the shapes in the image."""
    _calls.append(kind)
    return "circle"


@function_tool
def _screenshot() -> ToolOutputImage:
    """Take a screenshot."""
    _calls.append("screenshot")
    return ToolOutputImage(image_url=DATA_URL)


def _models(client: AsyncOpenAI) -> list[Model]:
    return [OpenAIResponsesModel(MODEL, client), OpenAIChatCompletionsModel(MODEL, client)]


async def _run(question: Any = USER, *, stream: bool = False, **options: Any) -> list[Any]:
    """Run an agent with each API. Return the final outputs."""
    _calls.clear()
    settings = ModelSettings(**SETTINGS, tool_choice=options.pop("tool_choice", None))
    outputs = []
    async with AsyncOpenAI(max_retries=0) as client:
        for model in _models(client):
            agent = Agent(name="Eye", model=model, model_settings=settings, **options)
            if stream:
                streamed = Runner.run_streamed(agent, question)
                types = [event.type async for event in streamed.stream_events()]
                assert "raw_response_event" in types
                outputs.append(streamed.final_output)
            else:
                outputs.append((await Runner.run(agent, question, max_turns=4)).final_output)
    return outputs


async def image_input() -> None:
    for output in await _run(instructions="Be brief."):
        assert COLOR in output


async def streaming() -> None:
    for output in await _run(stream=True):
        assert COLOR in output


async def tool_loop() -> None:
    for output in await _run(tools=[_shapes], tool_choice="required"):
        assert isinstance(output, str) and output
    assert len(_calls) >= 2


async def streamed_tool_loop() -> None:
    for output in await _run(tools=[_shapes], tool_choice="required", stream=True):
        assert isinstance(output, str) and output
    assert len(_calls) >= 2


async def typed_output() -> None:
    for output in await _run(output_type=Heart):
        assert isinstance(output, Heart)


async def typed_output_with_tools() -> None:
    for output in await _run(output_type=Heart, tools=[_shapes], tool_choice="required"):
        assert isinstance(output, Heart)
    assert len(_calls) >= 2


async def image_from_tool() -> None:
    async with AsyncOpenAI(max_retries=0) as client:
        for model in _models(client):
            settings = ModelSettings(**SETTINGS, tool_choice="required")
            agent = Agent(name="Eye", model=model, model_settings=settings, tools=[_screenshot])
            first, last = (await Runner.run(agent, QUESTION, max_turns=2)).raw_responses
            assert last.usage.input_tokens > first.usage.input_tokens + IMAGE_TOKENS, model


async def handoff() -> None:
    other = Agent(name="Other", model_settings=ModelSettings(**SETTINGS))
    async with AsyncOpenAI(max_retries=0) as client:
        for model in _models(client):
            other.model = model
            agent = Agent(
                name="Triage",
                model=model,
                handoffs=[other],
                model_settings=ModelSettings(**SETTINGS, tool_choice="required"),
            )
            result = await Runner.run(agent, USER, max_turns=3)
            assert result.last_agent.name == "Other" and result.final_output
