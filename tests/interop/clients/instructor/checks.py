"""Instructor: typed output in its modes, with Chat Completions, Responses and Anthropic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import instructor
from anthropic import Anthropic
from instructor import Mode
from instructor.processing.multimodal import Image
from openai import OpenAI
from pydantic import BaseModel
from scene import COLOR, IMAGE, MODEL, QUESTION


class Circle(BaseModel):
    color: Literal["red", "green", "blue"]


SETTINGS: Any = {"model": MODEL, "response_model": Circle, "max_retries": 0, "max_tokens": 100}
MESSAGES: Any = [{"role": "user", "content": [QUESTION, Image.from_path(IMAGE)]}]


def _openai(mode: Mode) -> Any:
    return instructor.from_openai(OpenAI(max_retries=0), mode=mode)


def _anthropic(mode: Mode) -> Any:
    return instructor.from_anthropic(Anthropic(max_retries=0), mode=mode)


def tools() -> None:
    assert _openai(Mode.TOOLS).chat.completions.create(messages=MESSAGES, **SETTINGS).color == COLOR


def strict_tools() -> None:
    assert _openai(Mode.TOOLS_STRICT).chat.completions.create(messages=MESSAGES, **SETTINGS).color


def json_schema() -> None:
    assert _openai(Mode.JSON_SCHEMA).chat.completions.create(messages=MESSAGES, **SETTINGS).color == COLOR


def parallel_tools() -> None:
    client = _openai(Mode.PARALLEL_TOOLS)
    found = client.chat.completions.create(
        messages=MESSAGES, **SETTINGS | {"response_model": Iterable[Circle]}
    )
    assert all(isinstance(each, Circle) for each in found)


def responses_tools() -> None:
    client = _openai(Mode.RESPONSES_TOOLS)
    settings = SETTINGS | {"max_tokens": None, "max_output_tokens": 100}
    del settings["max_tokens"]
    assert isinstance(client.responses.create(input=MESSAGES, **settings), Circle)


def anthropic_tools() -> None:
    assert _anthropic(Mode.ANTHROPIC_TOOLS).messages.create(messages=MESSAGES, **SETTINGS).color


def streaming() -> None:
    partial = list(_openai(Mode.TOOLS).chat.completions.create_partial(messages=MESSAGES, **SETTINGS))
    assert partial[-1].color == COLOR
