"""Two ways to answer an exam: transformers on a model folder, or a running OpenAI-style server."""

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from tiny.conversations import SYSTEM
from tiny.exam import Question, Result
from tiny.packs import prompt_ids

__all__ = ["ask_folder", "ask_server", "data_url", "messages"]

_MAX_NEW_TOKENS = 96


def ask_folder(
    folder: Path, exam: list[Question], *, batch_size: int = 32, dtype: str = "float32"
) -> Iterator[Result]:
    """Greedy answers of the real `LlavaForConditionalGeneration`, in batches of like questions."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    load_processor: Any = AutoProcessor.from_pretrained
    processor = load_processor(folder)
    pad = processor.tokenizer.pad_token_id
    for num_pictures in (0, 1, 2):
        group = [question for question in exam if len(question.scenes) == num_pictures]
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            rows = [prompt_ids(SYSTEM if q.system is None else q.system, q.turns, num_pictures) for q in part]
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids != pad).long()}
            if num_pictures:
                pictures = [picture for question in part for picture in question.pictures()]
                pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
                inputs["pixel_values"] = pixels.to(model.dtype)
            with torch.inference_mode():
                made = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
            texts = processor.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
            yield from (Result(question, text.strip()) for question, text in zip(part, texts, strict=True))


def data_url(picture: Image.Image) -> str:
    """The picture as a PNG inside a URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(question: Question) -> list[dict[str, Any]]:
    """The conversation as an OpenAI request has it; its last answer is left out."""
    written: list[dict[str, Any]] = []
    if question.system is not None:
        written.append({"role": "system", "content": question.system})
    for number, turn in enumerate(question.turns):
        content: str | list[dict[str, Any]] = turn.question
        if number == 0 and question.scenes:
            urls = [data_url(picture) for picture in question.pictures()]
            content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content.append({"type": "text", "text": turn.question})
        written.append({"role": "user", "content": content})
        if number < len(question.turns) - 1:
            written.append({"role": "assistant", "content": turn.answer})
    return written


def ask_server(
    url: str, exam: list[Question], *, concurrency: int, model: str | None = None, api_key: str | None = None
) -> Iterator[Result]:
    """Greedy answers over HTTP, `concurrency` at a time. A busy server (429, 503) is asked again."""
    import httpx2

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx2.Client(base_url=url, headers=headers, timeout=300) as client:
        if model is None:
            listed = client.get("/v1/models")
            listed.raise_for_status()
            model = listed.json()["data"][0]["id"]

        def ask(question: Question) -> Result:
            body = {
                "model": model,
                "messages": messages(question),
                "temperature": 0,
                "max_tokens": _MAX_NEW_TOKENS,
            }
            for _ in range(30):
                reply = client.post("/v1/chat/completions", json=body)
                if reply.status_code not in (429, 503):
                    break
                time.sleep(float(reply.headers.get("Retry-After", 1)))
            reply.raise_for_status()
            return Result(question, reply.json()["choices"][0]["message"]["content"].strip())

        with ThreadPoolExecutor(concurrency) as pool:
            yield from pool.map(ask, exam)
