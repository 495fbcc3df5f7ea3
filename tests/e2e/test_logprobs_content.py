"""The log probabilities of a response reproduce its text, in every API and in every chunk of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llava_server.settings import Settings

from tests.e2e.piece_worker import running_piece_worker, script
from tests.machine_speed import scaled
from tests.server.api.sse_lines import chunks_of
from tests.server.conftest import Server
from tests.waiting import wait_until
from tests.wire.redis_server import running_redis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = "echo"
INCLUDE = ["message.output_text.logprobs"]
Output = tuple[str, list[dict[str, Any]]]  # a text and its tokens
PIECES = [b"a", b"X", b" ", b" a", b" X", b"Y", b"YZ", b"XYZ", b"\xc3", b"\xa9", b"a\xc3", b"\xa9Y"]
PIECES += [b"\xf0", b"\xf0\x9f", b"\x9f\xa6", b"\x99", b"\xff", "é".encode(), "日".encode()]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with running_redis() as url, running_piece_worker(url):
        server = Server(Settings(redis_url=url, image_workers=1, auth=False))
        server.start()
        try:
            with httpx2.Client(base_url=server.url, timeout=scaled(60)) as client:
                wait_until(lambda: client.get("/readyz").status_code == 200)
                yield client
        finally:
            server.stop()


def expected_text(pieces: list[bytes], stop: list[str], *, is_chat: bool) -> str:
    data = b"".join(pieces)
    text = data.removeprefix(b" ").decode(errors="replace") if is_chat else data.decode(errors="replace")
    ends = [(text.find(string) + len(string), -len(string)) for string in stop if string in text]
    return text[: sum(min(ends))] if ends else text


def post(http: httpx2.Client, path: str, prompt: str, **fields: Any) -> httpx2.Response:
    response = http.post(path, json={"model": MODEL, "temperature": 0, **prompted(path, prompt), **fields})
    assert response.status_code == 200, response.text
    return response


def prompted(path: str, prompt: str) -> dict[str, Any]:
    if path == "/v1/completions":
        return {"prompt": prompt, "logprobs": 5}
    if path == "/v1/responses":
        return {"input": prompt, "include": INCLUDE, "top_logprobs": 6}
    return {"messages": [{"role": "user", "content": prompt}], "logprobs": True, "top_logprobs": 6}


def chat(http: httpx2.Client, prompt: str, **fields: Any) -> list[Output]:
    """Return the output of each choice, after checking that every chunk's tokens equal its text."""
    path = "/v1/chat/completions"
    choices = post(http, path, prompt, **fields).json()["choices"]
    outputs: list[Output] = [
        (choice["message"]["content"], choice["logprobs"]["content"]) for choice in choices
    ]
    streamed: list[Output] = [("", []) for _ in outputs]
    for chunk in chunks_of(post(http, path, prompt, stream=True, **fields)):
        [choice] = chunk["choices"]
        text = choice["delta"].get("content", "")
        tokens = choice["logprobs"]["content"] if choice["logprobs"] else []
        assert_reproduced((text, tokens))
        index = choice["index"]
        streamed[index] = (streamed[index][0] + text, streamed[index][1] + tokens)
    assert streamed == outputs
    return outputs


def responses(http: httpx2.Client, prompt: str, **fields: Any) -> Output:
    [part] = post(http, "/v1/responses", prompt, **fields).json()["output"][0]["content"]
    text, tokens = "", list[dict[str, Any]]()
    for line in post(http, "/v1/responses", prompt, stream=True, **fields).text.splitlines():
        event = json.loads(line[6:]) if line.startswith("data: ") else {"type": ""}
        if event["type"] == "response.output_text.delta":
            delta: Any = event["delta"]
            scored: Any = event["logprobs"]
            assert_reproduced((delta, scored))
            text, tokens = text + delta, tokens + scored
        elif event["type"] == "response.output_text.done":
            assert (event["text"], event["logprobs"]) == (text, tokens)
    assert (part["text"], part["logprobs"]) == (text, tokens)
    return text, tokens


def completions(http: httpx2.Client, prompt: str, **fields: Any) -> tuple[str, dict[str, list[Any]]]:
    [choice] = post(http, "/v1/completions", prompt, **fields).json()["choices"]
    text, joined = "", dict[str, list[Any]]()
    for chunk in chunks_of(post(http, "/v1/completions", prompt, stream=True, **fields)):
        [part] = chunk["choices"]
        assert part["text"] == "".join((part["logprobs"] or {"tokens": []})["tokens"])
        text += part["text"]
        for name, values in (part["logprobs"] or {}).items():
            joined[name] = joined.get(name, []) + values
    empty: dict[str, list[Any]] = {name: [] for name in choice["logprobs"]}
    assert (choice["text"], choice["logprobs"]) == (text, empty | joined)
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert offsets == [len("".join(tokens[:index])) for index in range(len(tokens))]
    top = choice["logprobs"]["top_logprobs"]
    for token, logprob, named in zip(tokens, choice["logprobs"]["token_logprobs"], top, strict=True):
        assert named is None or named[token] == logprob
    return text, choice["logprobs"]


def assert_reproduced(output: Output) -> None:
    text, tokens = output
    assert "".join(token["token"] for token in tokens) == text
    assert b"".join(bytes(token["bytes"]) for token in tokens) == text.encode()


OUTPUTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12)
STOPS = st.lists(st.sampled_from(["XYZ", "é", "aY", " ", "\ufffd", "YZX", "日a"]), max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OUTPUTS, STOPS, st.booleans())
@example([b" a", b"b"], [], True)  # the leading space
@example([b"aX", b"YZ", b"a"], ["XYZ"], True)  # a stop string that starts and ends within a token
@example([b"a", b"X", b"Y", b"a"], ["XYZ"], True)  # text that is held back and then released
@example([b"a", b"X", b"Y"], ["XYZ"], True)  # text that is held back until the end
@example([b"\xf0\x9f", b"\xa6", b"\x99"], [], True)  # a split character
@example([b"a", b"\xf0\x9f", b"a", b"\xff"], [], True)  # invalid bytes
@example([b"a", b"\xf0\x9f"], [], False)  # an output that ends within a character
@example([b" "], [], True)  # no text at all
def test_tokens_and_bytes_concatenate_to_the_text(
    http: httpx2.Client, pieces: list[bytes], stop: list[str], has_end: bool
) -> None:
    prompt = script(pieces, has_end=has_end)
    fields: dict[str, Any] = {"stop": stop} if stop else {}
    text = expected_text(pieces, stop, is_chat=True)
    [output] = chat(http, prompt, **fields)
    assert output[0] == text
    assert_reproduced(output)
    assert responses(http, prompt)[0] == expected_text(pieces, [], is_chat=True)
    text, logprobs = completions(http, prompt, max_tokens=64, **fields)
    assert text == "".join(logprobs["tokens"]) == expected_text(pieces, stop, is_chat=False)
    text, logprobs = completions(http, prompt, max_tokens=64, echo=True, **fields)
    assert text == "".join(logprobs["tokens"]) == prompt + expected_text(pieces, stop, is_chat=False)


def test_a_stop_string_within_a_token_shortens_that_token(http: httpx2.Client) -> None:
    [(_, tokens)] = chat(http, script([b"a", b"aX", b"YZ"], has_end=True), stop=["XYZ"])
    assert [(token["token"], token["bytes"]) for token in tokens] == [("a", [97]), ("a", [97])]


def test_a_split_character_is_in_its_last_token_and_its_bytes_are_in_each_token(http: httpx2.Client) -> None:
    [(_, tokens)] = chat(http, script([b"a\xc3", b"\xa9Y"], has_end=True))
    assert [(token["token"], token["bytes"]) for token in tokens] == [
        ("a", [0x61, 0xC3]),
        ("éY", [0xA9, 0x59]),
    ]


def test_special_tokens_are_only_among_the_alternatives_and_have_no_bytes(http: httpx2.Client) -> None:
    prompt = script([b" a"], has_end=True)
    [(_, [token])] = chat(http, prompt)
    assert [(each["token"], each["bytes"]) for each in token["top_logprobs"]] == [
        ("a", [97]),
        ("</s>", None),
        ("bytes:\\xa9", [0xA9]),
        ("bytes:\\xc3", [0xC3]),
        ("a", [97]),
        ("token_id:299", None),
    ]
    [token] = responses(http, prompt)[1]
    assert [each["bytes"] for each in token["top_logprobs"][1::4]] == [[], []]
    logprobs = completions(http, prompt)[1]
    assert list(logprobs["top_logprobs"][0]) == [" a", "</s>", "bytes:\\xa9", "bytes:\\xc3"]


def test_an_alternative_that_completes_a_character_has_the_character(http: httpx2.Client) -> None:
    [(_, [_, token])] = chat(http, script([b"\xc3", b"\xa4"], has_end=True))
    assert (token["token"], token["bytes"]) == ("ä", [0xA4])
    assert [each["token"] for each in token["top_logprobs"]][:3] == ["ä", "</s>", "é"]


def test_a_stop_token_is_not_in_the_log_probabilities(http: httpx2.Client) -> None:
    [(text, tokens)] = chat(http, script([b"a", b"Y"], has_end=True), stop_token_ids=[ord("Y")])
    assert (text, [token["token"] for token in tokens]) == ("a", ["a"])
    [output] = chat(http, script([b"a", b"\xc3", b"\xa9"], has_end=True), stop_token_ids=[0xA9])
    assert output[0] == "a\ufffd"  # the stop token does not complete the character
    assert_reproduced(output)


def test_each_choice_has_its_own_log_probabilities(http: httpx2.Client) -> None:
    outputs = chat(http, script([b"a\xc3", b"\xa9X", b"Y"], has_end=True), stop=["XYZ"], n=3)
    assert [text for text, _ in outputs] == ["aéXY"] * 3
    for output in outputs:
        assert_reproduced(output)


def test_omitted_tokens_count_as_completion_tokens(http: httpx2.Client) -> None:
    prompt = script([b"a", b"X", b"YZ"], has_end=True)
    body = post(http, "/v1/chat/completions", prompt, stop=["XYZ"]).json()
    assert body["usage"]["completion_tokens"] == 3
    assert len(body["choices"][0]["logprobs"]["content"]) == 1


def test_the_official_client_reads_the_log_probabilities(http: httpx2.Client) -> None:
    client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none")
    prompt = script([b" a", b"\xf0\x9f", b"\xa6", b"\x99"], has_end=True)
    choice = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], logprobs=True, top_logprobs=2
    ).choices[0]
    assert choice.logprobs and choice.logprobs.content
    data = bytes(byte for token in choice.logprobs.content for byte in token.bytes or ())
    assert data.decode() == choice.message.content == "a🦙"
    assert choice.logprobs.content[0].top_logprobs[1].bytes is None
    completion = client.completions.create(model=MODEL, prompt=prompt, logprobs=1).choices[0]
    assert completion.logprobs and completion.logprobs.tokens == [" a", "", "", "🦙"]
    response = client.responses.create(model=MODEL, input=prompt, include=["message.output_text.logprobs"])
    part: Any = response.output[0]
    assert "".join(token.token for token in part.content[0].logprobs) == response.output_text == "a🦙"


@pytest.mark.parametrize("stop", [[], ["XYZ"], ["XX"]], ids=str)
def test_a_resumed_stream_equals_the_uninterrupted_one(http: httpx2.Client, stop: list[str]) -> None:
    """Text and tokens are held back at every position: by a split character and by stop strings."""
    pieces = [b" a", b"\xf0\x9f", b"\xa6", b"\x99X", b"Y", b"a", b"\xc3", b"\xa9", b"X", b"Y", b"X"]
    fields: dict[str, Any] = {"stop": stop} if stop else {}
    whole = post(
        http, "/v1/chat/completions", script(pieces, has_end=False), stream=True, seed=1, **fields
    ).text
    job_id = json.loads(whole.partition("data: ")[2].partition("\n")[0])["id"]
    chunks = [parse_chunk(block) for block in whole.split("\n\n") if '"choices"' in block]
    assert len([offset for offset, _ in chunks if offset]) >= 3
    for number, (offset, _) in enumerate(chunks):
        if offset is not None:
            query = {"stream": "true", "starting_after": offset}
            rest = http.get(f"/v1/chat/completions/{job_id}", params=query).text
            resumed = [parse_chunk(block) for block in rest.split("\n\n") if '"choices"' in block]
            # A client that has received all tokens receives only the finish reason again.
            assert resumed == (chunks[number + 1 :] or chunks[-1:])


def parse_chunk(block: str) -> tuple[str | None, Any]:
    """Return the token offset of a chunk, if it has one, and its choice."""
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    offset = fields["id"].rpartition(":")[2] if "id" in fields else None
    return offset, json.loads(fields["data"])["choices"][0]
