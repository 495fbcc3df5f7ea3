"""Instructor: typed output in its modes, with Chat Completions, Responses and Anthropic."""

from __future__ import annotations

from typing import Any

import instructor
from anthropic import Anthropic
from instructor import Mode
from instructor.processing.multimodal import Image
from openai import OpenAI
from pydantic import BaseModel
from scene import IMAGE, MODEL, QUESTION, Sentence


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


SETTINGS: Any = {
    "model": MODEL,
    "response_model": Heart,
    "max_retries": 0,
    "max_tokens": 100,
    "temperature": 0,
}
MESSAGES: Any = [{"role": "user", "content": [QUESTION, Image.from_path(IMAGE)]}]


def _openai(mode: Mode) -> Any:
    return instructor.from_openai(OpenAI(max_retries=0), mode=mode)


def _anthropic(mode: Mode) -> Any:
    return instructor.from_anthropic(Anthropic(max_retries=0), mode=mode)


def typed_output() -> None:
    assert _openai(Mode.TOOLS).chat.completions.create(messages=MESSAGES, **SETTINGS).sentence


def strict_tools() -> None:
    assert _openai(Mode.TOOLS_STRICT).chat.completions.create(messages=MESSAGES, **SETTINGS).sentence


def json_schema() -> None:
    assert _openai(Mode.JSON_SCHEMA).chat.completions.create(messages=MESSAGES, **SETTINGS).sentence


def responses_tools() -> None:
    client = _openai(Mode.RESPONSES_TOOLS)
    settings = {name: value for name, value in SETTINGS.items() if name != "max_tokens"}
    assert isinstance(client.responses.create(input=MESSAGES, **settings), Heart)


def anthropic_tools() -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "temperature"}
    assert _anthropic(Mode.ANTHROPIC_TOOLS).messages.create(messages=MESSAGES, **settings).sentence


def streaming() -> None:
    partial = list(_openai(Mode.TOOLS).chat.completions.create_partial(messages=MESSAGES, **SETTINGS))
    assert partial[-1].sentence
