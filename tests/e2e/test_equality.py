"""Sixteen at once == one at a time == transformers, on conversations of 1-3 turns with 0-2 images."""

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
def exam() -> list[Question]:
    found = list(evaluation_questions(NUM_PROMPTS // 3 + 1, "equality"))[:NUM_PROMPTS]
    assert {len(question.scenes) for question in found} == {0, 1, 2}
    assert {len(question.turns) for question in found} == {1, 2, 3}
    return found


@pytest.fixture(scope="module")
def expected(exam: list[Question]) -> list[str]:
    return list(transformers_answers(exam))


def transformers_answers(exam: list[Question]) -> Iterator[str]:
    """Greedy fp32 answers by transformers alone: its chat template, its processor, its model."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(TINY)
    for question in exam:
        prompt = processor.apply_chat_template(hf_messages(question), add_generation_prompt=True)
        inputs = processor(text=prompt, images=question.images() or None, return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        ids = made[0, inputs["input_ids"].shape[1] :]
        yield processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def hf_messages(question: Question) -> list[dict[str, Any]]:
    """The conversation as transformers' chat templates take it: pictures are marks without content."""
    turns: list[dict[str, Any]] = []
    for message in chat_messages(question):
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        marks = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
        turns.append({"role": message["role"], "content": marks})
    return turns


def ask(url: str, question: Question) -> str:
    body = {
        "model": "tiny-llava",
        "messages": chat_messages(question),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=scaled(120))
    assert answer.status_code == 200, answer.text
    text = answer.json()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text.strip()


def test_one_at_a_time_the_server_says_what_transformers_says(
    tiny_server: str, exam: list[Question], expected: list[str]
) -> None:
    assert [ask(tiny_server, question) for question in exam] == expected


def test_sixteen_at_once_the_server_says_what_transformers_says(
    tiny_server: str, exam: list[Question], expected: list[str]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda question: ask(tiny_server, question), exam)) == expected


def test_another_question_gets_another_answer(expected: list[str]) -> None:
    assert len(set(expected)) > len(expected) / 8
