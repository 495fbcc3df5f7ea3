"""Hugging Face's smolagents: agents that call tools and agents that write code."""

from __future__ import annotations

import json
import os
from typing import Any, get_args

from PIL import Image
from scene import COLOR, IMAGE, MODEL, QUESTION, SENTENCE, Sentence
from smolagents import EMPTY_PROMPT_TEMPLATES, ChatMessage, MessageRole, OpenAIModel, Tool, ToolCallingAgent

SETTINGS: Any = {
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": "none",
    "temperature": 0,
    "max_tokens": 60,
}


class _Look(Tool):
    name = "look"
    description = "Returns the shape."
    inputs = {"shape": {"type": "string", "description": "A shape.", "enum": ["circle", "star"]}}
    output_type = "string"

    def forward(self, shape: str) -> str:
        return "ok"


def _message() -> ChatMessage:
    content = [{"type": "image", "image": Image.open(IMAGE)}, {"type": "text", "text": QUESTION}]
    return ChatMessage(MessageRole.USER, content)


def image_input() -> None:
    assert COLOR in OpenAIModel(MODEL, **SETTINGS)([_message()]).content


def streaming() -> None:
    deltas = OpenAIModel(MODEL, **SETTINGS).generate_stream([_message()])
    assert COLOR in "".join(delta.content or "" for delta in deltas)


def typed_output() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"sentence": {"enum": [*get_args(Sentence)]}}}
    schema.update(required=["sentence"], additionalProperties=False)
    form = {"type": "json_schema", "json_schema": {"name": "circle", "strict": True, "schema": schema}}
    content = OpenAIModel(MODEL, **SETTINGS)([_message()], response_format=form).content
    assert json.loads(content)["sentence"] == SENTENCE


def tool_loop() -> None:
    """The agent requires a tool call in each step, and ends with its tool ``final_answer``."""
    model = OpenAIModel(MODEL, **SETTINGS | {"max_tokens": 200})
    # The default system prompt is longer than the bundled model's context.
    prompts = {**EMPTY_PROMPT_TEMPLATES, "system_prompt": "Use the tools."}
    agent = ToolCallingAgent([_Look()], model, prompt_templates=prompts, max_steps=2, verbosity_level=0)
    assert agent.run("Which shape is it?", images=[Image.open(IMAGE)]) is not None
    assert any(getattr(step, "tool_calls", None) for step in agent.memory.steps)
