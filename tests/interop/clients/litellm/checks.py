"""LiteLLM as a library, with several of its providers, and as a proxy in front of the server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import litellm
from openai import OpenAI
from pydantic import BaseModel
from scene import BASE64, COLOR, DATA_URL, MODEL, NO_IMAGE, QUESTION, Sentence

ADDRESS = os.environ["OPENAI_BASE_URL"]
ROOT = os.environ["ANTHROPIC_BASE_URL"]
PROVIDERS: dict[str, Any] = {
    "openai": {"api_base": ADDRESS},
    "hosted_vllm": {"api_base": ADDRESS, "api_key": "none"},
    "anthropic": {"api_base": ROOT},
    "ollama_chat": {"api_base": ROOT},
}
PART: Any = {"type": "image_url", "image_url": {"url": DATA_URL}}
USER: Any = {"role": "user", "content": [PART, {"type": "text", "text": QUESTION}]}
SHAPE: Any = {"type": "object", "properties": {"shape": {"enum": ["circle", "star"]}}, "required": ["shape"]}
SHAPE["additionalProperties"] = False
LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": SHAPE}}
CALL: Any = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"shape": "circle"}'}}


class Heart(BaseModel, extra="forbid"):
    sentence: Sentence


def _complete(provider: str, **options: Any) -> Any:
    options = {"messages": [USER], "temperature": 0, "max_tokens": 100, **options}
    return litellm.completion(f"{provider}/{MODEL}", **PROVIDERS[provider], **options, num_retries=0)


def image_input() -> None:
    for provider in PROVIDERS:
        assert COLOR in _complete(provider).choices[0].message.content, provider


def streaming() -> None:
    for provider in PROVIDERS:
        chunks = [chunk.choices[0].delta.content or "" for chunk in _complete(provider, stream=True)]
        assert len(chunks) > 2 and COLOR in "".join(chunks), provider


def tool_loop() -> None:
    for provider in ("openai", "hosted_vllm", "anthropic"):
        message = _complete(provider, tools=[LOOK], tool_choice="required").choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in message.tool_calls]
        assert json.loads(message.tool_calls[0].function.arguments)["shape"] in ("circle", "star")
        last = _complete(provider, messages=[USER, message, *results], tools=[LOOK], tool_choice="none")
        assert last.choices[0].message.content, provider


def typed_output() -> None:
    for provider in ("openai", "hosted_vllm", "ollama_chat"):
        Heart.model_validate_json(_complete(provider, response_format=Heart).choices[0].message.content)


def typed_output_with_tools() -> None:
    for provider in ("openai", "hosted_vllm"):
        completion = _complete(provider, response_format=Heart, tools=[LOOK], tool_choice="none")
        Heart.model_validate_json(completion.choices[0].message.content)


def image_from_tool() -> None:
    history = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": [PART]},
    ]
    for provider in ("openai", "hosted_vllm"):
        assert NO_IMAGE not in _complete(provider, messages=history).choices[0].message.content, provider


def embeddings() -> None:
    vectors = litellm.embedding(f"openai/{MODEL}", ["a red circle", "two stars"], api_base=ADDRESS).data
    assert len(vectors) == 2


def responses() -> None:
    parts = [{"type": "input_image", "image_url": DATA_URL}, {"type": "input_text", "text": QUESTION}]
    response: Any = litellm.responses(
        input=[{"role": "user", "content": parts}], model=f"openai/{MODEL}", api_base=ADDRESS, temperature=0
    )
    assert COLOR in response.output[0].content[0].text


def proxy() -> None:
    """Chat, embeddings, Anthropic's Messages API and the Responses API through the proxy."""
    with _running_proxy() as url, OpenAI(base_url=f"{url}/v1", api_key="sk-1", max_retries=0) as client:
        with client.chat.completions.stream(model="llava", messages=[USER], temperature=0) as stream:
            assert COLOR in (stream.get_final_completion().choices[0].message.content or "")
        parts: Any = [
            {"type": "input_image", "image_url": DATA_URL},
            {"type": "input_text", "text": QUESTION},
        ]
        response = client.responses.create(model="llava", input=[{"role": "user", "content": parts}])
        assert COLOR in response.output_text
        assert client.embeddings.create(model="llava", input="a star").data
        source = {"type": "base64", "media_type": "image/png", "data": BASE64}
        content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
        for model in ("llava", "llava-anthropic"):
            body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": content}]}
            message = httpx.post(f"{url}/v1/messages", json=body, headers={"x-api-key": "sk-1"}, timeout=60)
            assert message.status_code == 200 and COLOR in message.text, (model, message.text)


@contextmanager
def _running_proxy() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    models = [
        ("llava", {"model": f"openai/{MODEL}", "api_base": ADDRESS, "api_key": "none"}),
        ("llava-anthropic", {"model": f"anthropic/{MODEL}", "api_base": ROOT, "api_key": "none"}),
    ]
    config = {
        "model_list": [{"model_name": name, "litellm_params": options} for name, options in models],
        "general_settings": {"master_key": "sk-1"},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is valid YAML
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(path), "--port", str(port)]
        with (
            (Path(folder) / "log").open("w+") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as process,
        ):
            try:
                _wait_until_live(f"http://127.0.0.1:{port}/health/liveliness", process)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def _wait_until_live(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:  # noqa: PERF203
            time.sleep(0.5)
    raise TimeoutError("the proxy did not start")
