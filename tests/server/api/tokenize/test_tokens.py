"""/tokenize and /detokenize, in vLLM's format."""

from __future__ import annotations

from typing import Any

from tests.server.api.chat.test_tools import WEATHER
from tests.server.conftest import Stack
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL

USER = {"role": "user", "content": "Hi"}


def test_a_text_is_tokenized(stack: Stack) -> None:
    response = stack.http.post("/tokenize", json={"model": MODEL, "prompt": "aé"})
    assert response.json() == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": list("aé".encode()),
        "token_strs": None,
    }
    job = stack.worker.assignments[-1].job
    assert (job.task, job.form) == ("tokenize", "raw")


def test_a_conversation_has_the_tokens_of_a_chat_prompt(stack: Stack) -> None:
    image = {"role": "user", "content": [part(encoded(scene())), {"type": "text", "text": "Hi"}]}
    response = stack.http.post("/tokenize", json={"model": MODEL, "messages": [image]})
    assert response.json()["tokens"] == [0, *b"Hi"]
    job = stack.worker.assignments[-1].job
    assert (job.task, job.form, len(job.images)) == ("tokenize", "chat", 1)


def test_functions_and_continued_messages_are_included(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [USER]}
    plain = stack.http.post("/tokenize", json=body).json()["count"]
    assert stack.http.post("/tokenize", json={**body, "tools": [WEATHER]}).json()["count"] > plain
    begun = [USER, {"role": "assistant", "content": "I am"}]
    stack.http.post("/tokenize", json={**body, "messages": begun, "continue_final_message": True})
    assert stack.worker.assignments[-1].job.form == "continued"


def test_tokens_are_converted_to_text(stack: Stack) -> None:
    response = stack.http.post("/detokenize", json={"model": MODEL, "tokens": list(map(ord, "aé"))})
    assert response.json() == {"prompt": "aé"}
    assert stack.worker.assignments[-1].job.task == "detokenize"


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs"),
    ("/tokenize", {"prompt": "x" * (1024 * 1024 + 1)}, "prompt"),
    ("/tokenize", {"messages": [USER], "continue_final_message": True}, "continue_final_message"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": []}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ("/detokenize", {"tokens": [2**31]}, "tokens[0]"),
    ("/detokenize", {"tokens": "abc"}, "tokens"),
]


def test_an_invalid_request_is_a_400_that_names_the_field(stack: Stack) -> None:
    for path, fields, param in INVALID:
        response = stack.http.post(path, json={"model": MODEL, **fields})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
