"""The unmodified ``ollama`` package works with the bundled model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from PIL import Image
from pydantic import BaseModel
from tiny.drawing import draw
from tiny.scenes import sample_scene

from tests.server.image_files import encoded

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "tiny-llava"
QUESTION = "What color is the circle?"
GREEDY = {"temperature": 0}


class Shape(BaseModel):
    """A format for the output."""

    is_red: bool
    count: int


@pytest.fixture(scope="module")
def image() -> bytes:
    drawn: Image.Image = draw(sample_scene("clients", 0))
    return encoded(drawn)


@pytest.fixture
def client(tiny_server: str) -> Iterator[ollama.Client]:
    with ollama.Client(tiny_server) as client:
        yield client


def question_about(image: bytes) -> list[Any]:
    return [{"role": "user", "content": QUESTION, "images": [image]}]


def test_a_chat_about_an_image_streams_the_same_text(client: ollama.Client, image: bytes) -> None:
    whole = client.chat(MODEL, question_about(image), options=GREEDY)
    assert whole.message.content and whole.done_reason == "stop"
    assert whole.prompt_eval_count and whole.prompt_eval_count > 100
    chunks = list(client.chat(f"{MODEL}:latest", question_about(image), options=GREEDY, stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].eval_count == whole.eval_count
    assert client.generate(MODEL, QUESTION, images=[image], options=GREEDY).response == whole.message.content


def test_the_same_seed_gives_the_same_text(client: ollama.Client, image: bytes) -> None:
    options = {"temperature": 1.5, "seed": 7, "num_predict": 12}
    first, second = (client.chat(MODEL, question_about(image), options=options) for _ in range(2))
    assert first.message.content == second.message.content


def test_an_output_conforms_to_its_format(client: ollama.Client, image: bytes) -> None:
    options = {**GREEDY, "num_predict": 64}
    response = client.chat(MODEL, question_about(image), format=Shape.model_json_schema(), options=options)
    assert response.done_reason in ("stop", "length")
    if response.done_reason == "stop":
        Shape.model_validate_json(response.message.content or "")
    listed = client.chat(MODEL, question_about(image), format={"enum": [["a", 1]]}, options=options)
    assert json.loads(listed.message.content or "") == ["a", 1]


def test_with_tools_the_response_is_either_text_or_calls(client: ollama.Client, image: bytes) -> None:
    def look(color: str) -> str:
        """Look for a color.

        Args:
          color: Name of the color.
        """
        return color

    response = client.chat(MODEL, question_about(image), tools=[look], options={**GREEDY, "num_predict": 64})
    assert bool(response.message.content) != bool(response.message.tool_calls)
    calls = [{"function": {"name": "look", "arguments": {"color": "red"}}}]
    history = [
        *question_about(image),
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "look", "content": "A red circle."},
    ]
    assert client.chat(MODEL, history, tools=[look], options={**GREEDY, "num_predict": 8}).done


def test_a_raw_prompt_is_limited_only_by_the_context_length(client: ollama.Client) -> None:
    prompt = "USER: What can you do? ASSISTANT:"
    response = client.generate(MODEL, prompt, raw=True, options=GREEDY)
    assert response.response and response.done_reason == "stop"
    limited = client.generate(MODEL, prompt, raw=True, options={**GREEDY, "num_predict": 2})
    assert (limited.eval_count, limited.done_reason) == (2, "length")


def test_log_probabilities_concatenate_to_the_text(client: ollama.Client, image: bytes) -> None:
    response = client.chat(MODEL, question_about(image), options=GREEDY, logprobs=True, top_logprobs=2)
    assert "".join(token.token for token in response.logprobs or ()) == response.message.content


def test_embeddings_have_unit_length(client: ollama.Client) -> None:
    vectors = client.embed(MODEL, ["a red circle", "two blue stars"], dimensions=16).embeddings
    assert [len(vector) for vector in vectors] == [16, 16]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)


def test_a_prompt_that_exceeds_the_context_length_is_rejected(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="context") as caught:
        client.generate(MODEL, "word " * 9000)
    assert caught.value.status_code == 400


def test_the_model_is_listed_running_and_described(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [f"{MODEL}:latest"]
    [running] = client.ps().models
    shown = client.show(MODEL)
    assert shown.modelinfo and shown.modelinfo["llava.context_length"] == running.context_length
    assert shown.capabilities == ["completion", "vision", "tools"]
