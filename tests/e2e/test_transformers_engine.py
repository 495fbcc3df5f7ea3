"""Six vision-language families are served over HTTP by the transformers engine, across a crash of the worker.

Images are sent as PNG files. Streams must equal the output of transformers' own ``generate``.
"""

from __future__ import annotations

import base64
import io
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.exhaustive import sampled
from tests.machine_speed import scaled
from tests.processes import StartWorker, running_controller
from tests.waiting import wait_until
from tests.worker.engine.transformers.families import FAMILIES, write_family
from tests.worker.engine.transformers.served_family import Question, ReferenceFamily, make_questions

pytestmark = [
    pytest.mark.e2e,
    # From the processor of PaliGemma, in code of transformers.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SAMPLE = ("llava_onevision", "qwen2_vl")  # the other families only with --exhaustive
NUM_STREAMS = 8
NUM_TOKENS = 80
QUESTIONS = make_questions(seed=1)
SETTINGS = {
    "engine": "transformers",
    "device": "cpu",
    "threads": 1,
    "lease_s": 1,
    "served_model_name": "vl",
    "max_num_sequences": NUM_STREAMS // 2,  # the other streams are waiting when the worker is killed
}


def expected_text(family: ReferenceFamily, question: Question) -> str:
    tokens = family.generated(question, max_tokens=NUM_TOKENS)
    return str(family.processor.tokenizer.decode(tokens, skip_special_tokens=True))


def request_body(question: Question) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for image in question.images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {
        "model": "vl",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}],
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "stream": True,
    }


def stream(url: str, question: Question, has_begun: Semaphore) -> Iterator[str]:
    """Yield the text of a streamed response. Release ``has_begun`` at the first text."""
    chat = f"{url}/v1/chat/completions"
    with httpx2.stream("POST", chat, json=request_body(question), timeout=scaled(120)) as response:
        if response.status_code != 200:
            raise AssertionError(response.read())
        is_first = True
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if not data.startswith("{"):
                continue
            chunk = json.loads(data)
            assert "error" not in chunk, chunk
            if text := chunk["choices"][0]["delta"].get("content"):
                yield text
                if is_first:
                    has_begun.release()
                    is_first = False


@pytest.mark.parametrize("name", sampled(FAMILIES, SAMPLE))
def test_streams_equal_generate_across_a_crash_of_the_worker(
    name: str, queue_url: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    folder = write_family(name, tmp_path / name)
    family = ReferenceFamily(folder)
    expected = [expected_text(family, question) for question in QUESTIONS]
    first = start_worker(model=folder, **SETTINGS)
    with running_controller(queue_url, tmp_path) as site, ThreadPoolExecutor(NUM_STREAMS) as threads:
        (model,) = httpx2.get(f"{site.url}/v1/models").json()["data"]
        assert (model["engine"], model["batching"]) == ("transformers", "padded")
        has_begun = Semaphore(0)
        streams = [
            threads.submit(lambda question: "".join(stream(site.url, question, has_begun)), question)
            for question in (QUESTIONS * NUM_STREAMS)[:NUM_STREAMS]
        ]
        assert has_begun.acquire(timeout=scaled(60))
        assert not all(each.done() for each in streams)
        first.send(signal.SIGKILL)
        second = start_worker(model=folder, **SETTINGS)
        texts = [each.result() for each in streams]

    assert texts == (expected * NUM_STREAMS)[:NUM_STREAMS]
    assert "worker ready" in second.log


def test_a_model_that_no_engine_supports_ends_in_one_sentence(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))

    worker = start_worker(model=tmp_path / "model", device="cpu")
    wait_until(lambda: worker.status is not None, "the end of the worker")

    (error,) = [line for line in worker.log.splitlines() if "cannot be served" in line]
    assert "has model_type 'bert'" in error
    assert "the native engine supports llava, llava_next" in error
    assert "transformers has no AutoModelForImageTextToText for model_type 'bert'" in error
    assert "for example llava_onevision, qwen2_vl" in error
    assert "Traceback" not in worker.log
