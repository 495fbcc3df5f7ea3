"""Outputs of concurrent and sequential requests equal those of transformers.

The conversations have 1 to 3 turns and 0 to 2 images.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tiny.evaluation import Question, evaluation_questions
from tiny.predictions import chat_messages

from tests.machine_speed import scaled

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NUM_PROMPTS = 200
MAX_TOKENS = 32
TINY = Path(__file__).parents[2] / "worker" / "llava_worker" / "tiny"


@pytest.fixture(scope="module")
def eval_questions() -> list[Question]:
    found = list(evaluation_questions(NUM_PROMPTS // 3 + 1, "equality"))[:NUM_PROMPTS]
    assert {len(question.scenes) for question in found} == {0, 1, 2}
    assert {len(question.turns) for question in found} == {1, 2, 3}
    return found


@pytest.fixture(scope="module")
def expected(eval_questions: list[Question]) -> list[str]:
    return list(transformers_outputs(eval_questions))


def transformers_outputs(eval_questions: list[Question]) -> Iterator[str]:
    """Yield greedy fp32 outputs of transformers, with its own chat template, processor and model."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(TINY)
    for question in eval_questions:
        prompt = processor.apply_chat_template(hf_messages(question), add_generation_prompt=True)
        inputs = processor(text=prompt, images=question.images() or None, return_tensors="pt")
        with torch.inference_mode():
            generated = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        ids = generated[0, inputs["input_ids"].shape[1] :]
        yield processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def hf_messages(question: Question) -> list[dict[str, Any]]:
    """Return the conversation in the format of transformers' chat templates, with images as placeholders."""
    turns: list[dict[str, Any]] = []
    for message in chat_messages(question):
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        placeholders = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
        turns.append({"role": message["role"], "content": placeholders})
    return turns


def ask(url: str, question: Question) -> str:
    body = {
        "model": "tiny-llava",
        "messages": chat_messages(question),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    response = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=scaled(120))
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text.strip()


def test_sequential_requests_return_the_outputs_of_transformers(
    tiny_server: str, eval_questions: list[Question], expected: list[str]
) -> None:
    assert [ask(tiny_server, question) for question in eval_questions] == expected


def test_sixteen_concurrent_requests_return_the_outputs_of_transformers(
    tiny_server: str, eval_questions: list[Question], expected: list[str]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda question: ask(tiny_server, question), eval_questions)) == expected


def test_different_questions_get_different_answers(expected: list[str]) -> None:
    assert len(set(expected)) > len(expected) / 8
