"""Generate answers to the evaluation questions, with transformers or with an OpenAI-compatible server."""

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from tiny.conversations import SYSTEM
from tiny.evaluation import Question, Result
from tiny.packing import prompt_ids

__all__ = ["chat_messages", "data_url", "predict_with_server", "predict_with_transformers"]

_MAX_NEW_TOKENS = 96


def predict_with_transformers(
    folder: Path, questions: list[Question], *, batch_size: int = 32, dtype: str = "float32"
) -> Iterator[Result]:
    """Generate greedy outputs with `LlavaForConditionalGeneration`.

    Questions with the same number of images form a batch, so results are not in the order of `questions`.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    load_processor: Any = AutoProcessor.from_pretrained
    processor = load_processor(folder)
    pad = processor.tokenizer.pad_token_id
    for num_images in (0, 1, 2):
        group = [question for question in questions if len(question.scenes) == num_images]
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            rows = [prompt_ids(SYSTEM if q.system is None else q.system, q.turns, num_images) for q in batch]
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids != pad).long()}
            if num_images:
                images = [image for question in batch for image in question.images()]
                pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
                inputs["pixel_values"] = pixels.to(model.dtype)
            with torch.inference_mode():
                generated = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
            texts = processor.tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)
            yield from (Result(question, text.strip()) for question, text in zip(batch, texts, strict=True))


def data_url(image: Image.Image) -> str:
    """Return the image as a data URL in PNG format."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_messages(question: Question) -> list[dict[str, Any]]:
    """Return the messages of an OpenAI chat request, without the last answer."""
    messages: list[dict[str, Any]] = []
    if question.system is not None:
        messages.append({"role": "system", "content": question.system})
    for number, turn in enumerate(question.turns):
        content: str | list[dict[str, Any]] = turn.question
        if number == 0 and question.scenes:
            urls = [data_url(image) for image in question.images()]
            content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content.append({"type": "text", "text": turn.question})
        messages.append({"role": "user", "content": content})
        if number < len(question.turns) - 1:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def predict_with_server(
    url: str,
    questions: list[Question],
    *,
    concurrency: int,
    model: str | None = None,
    api_key: str | None = None,
) -> Iterator[Result]:
    """Generate greedy outputs with `concurrency` concurrent requests.

    A request that fails with status 429 or 503 is retried after the time in the Retry-After header, up to 30
    times.
    """
    import httpx2

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=300) as client:
        if model is None:
            response = client.get("/v1/models")
            response.raise_for_status()
            model = response.json()["data"][0]["id"]

        def ask(question: Question) -> Result:
            body = {
                "model": model,
                "messages": chat_messages(question),
                "temperature": 0,
                "max_tokens": _MAX_NEW_TOKENS,
            }
            for _ in range(30):
                response = client.post("/v1/chat/completions", json=body)
                if response.status_code not in (429, 503):
                    break
                time.sleep(float(response.headers.get("Retry-After", 1)))
            response.raise_for_status()
            return Result(question, response.json()["choices"][0]["message"]["content"].strip())

        with ThreadPoolExecutor(concurrency) as pool:
            yield from pool.map(ask, questions)
