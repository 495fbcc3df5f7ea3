"""``bench``: what is asked of a server, what is counted, and what a user and a script see."""

from __future__ import annotations

import json
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from llava_cli import app
from typer.testing import CliRunner

from tests.client.scripted_peer import (
    DELTAS,
    Behaviour,
    Peer,
    chunk,
    event,
    hangs_up,
    is_silent_until,
    refuses,
    streams,
)

runner = CliRunner()


def run(peer: Peer, *arguments: str) -> Any:
    return runner.invoke(app, ["bench", peer.url, *arguments])


def run_json(peer: Peer, folder: Path, *arguments: str) -> dict[str, Any]:
    path = folder / "out.json"
    result = run(peer, "--out", str(path), *arguments)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(path.read_text()))


def picture_of(body: dict[str, Any]) -> str | None:
    content = body["messages"][0]["content"]
    return None if isinstance(content, str) else str(content[0]["image_url"]["url"])


def test_a_load_is_a_table_and_nothing_on_stderr(peer: Peer) -> None:
    result = run(peer, "-n", "6", "-c", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "6 of 6 requests answered" in result.stdout
    assert "time to first token" in result.stdout
    assert len(peer.chats) == 7  # one to warm up


def test_new_pictures_differ_and_the_same_picture_does_not(peer: Peer) -> None:
    run(peer, "-n", "4", "--pictures", "new")
    assert len({picture_of(request.body) for request in peer.chats}) == 5
    peer.requests.clear()
    run(peer, "-n", "4", "--pictures", "same")
    warm_up, *measured = [picture_of(request.body) for request in peer.chats]
    assert set(measured).isdisjoint({warm_up, None})
    assert len(set(measured)) == 1
    peer.requests.clear()
    run(peer, "-n", "2", "--pictures", "none")
    assert {picture_of(request.body) for request in peer.chats} == {None}


def test_the_same_seed_asks_the_same_and_no_seed_something_else(peer: Peer) -> None:
    asked = []
    for seed in (["--seed", "7"], ["--seed", "7"], [], []):
        peer.requests.clear()
        run(peer, "-n", "2", *seed)
        asked.append(json.dumps([request.body for request in peer.chats]))
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3


def test_a_request_says_how_long_its_answer_shall_be(peer: Peer) -> None:
    run(peer, "-n", "1", "--max-tokens", "9", "--words", "5", "--pictures", "none", "-m", "other")
    body = peer.last_body
    assert (body["model"], body["max_tokens"], body["temperature"], body["ignore_eos"]) == (
        "other",
        9,
        0,
        True,
    )
    assert len(body["messages"][0]["content"].split()) == 6  # five words and the number


def test_a_server_that_knows_no_ignore_eos_is_measured_without_it(peer: Peer) -> None:
    peer.script(refuses(422, "unknown field ignore_eos"))
    result = run(peer, "-n", "2")
    assert result.exit_code == 0
    assert "does not take ignore_eos" in result.stderr
    assert ["ignore_eos" in request.body for request in peer.chats] == [True, False, False, False]


def test_a_server_that_refuses_for_another_reason_is_not_measured(peer: Peer) -> None:
    peer.script(refuses(422, "no such model"), refuses(422, "no such model"))
    result = run(peer, "-n", "2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no such model" in result.stderr


def test_a_busy_server_is_asked_once_and_not_measured(peer: Peer) -> None:
    peer.script(refuses(429, "too many"))
    result = run(peer, "-n", "2")
    assert (result.exit_code, len(peer.chats)) == (5, 1)


def test_a_talk_carries_its_earlier_turns(peer: Peer, tmp_path: Path) -> None:
    told = run_json(peer, tmp_path, "-n", "1", "--turns", "3", "--no-warm-up")
    assert [len(request.body["messages"]) for request in peer.chats] == [1, 3, 5]
    assert peer.last_body["messages"][1] == {"role": "assistant", "content": "".join(DELTAS)}
    assert [sample["turn"] for sample in told["samples"]] == [0, 1, 2]


def test_the_file_tells_of_every_request(peer: Peer, tmp_path: Path) -> None:
    told = run_json(peer, tmp_path, "-n", "3", "--seed", "5")
    assert (told["format"], told["model"], told["plan"]["seed"]) == (1, "tiny-llava", 5)
    assert len(told["samples"]) == 3
    for sample in told["samples"]:
        assert 0 < sample["ttft_s"] <= sample["total_s"]
        assert len(sample["gaps_s"]) == len(DELTAS) - 1
        assert sample["ttft_s"] + sum(sample["gaps_s"]) <= sample["total_s"]
        assert (sample["num_tokens"], sample["prompt_tokens"], sample["cached_tokens"]) == (4, 71, 64)
    assert told["summary"]["num_complete"] == 3
    assert told["summary"]["output_tokens"] == 12


def test_refusals_are_counted_by_kind_and_the_rest_is_measured(peer: Peer, tmp_path: Path) -> None:
    broken = streams(event(chunk({"content": "A"})), then=hangs_up)
    failed = streams(event({"error": {"message": "the worker crashed"}}))
    empty = streams(event(chunk({}, "stop")), event("[DONE]"))
    peer.script(refuses(429, retry_after="9"), refuses(429, retry_after="9"), broken, failed, empty)
    told = run_json(peer, tmp_path, "-n", "8", "--no-warm-up")
    kinds = {"http_429": 2, "broken_off": 1, "error_event": 1, "no_text": 1}
    assert told["summary"]["errors"] == kinds
    assert (told["summary"]["num_requests"], told["summary"]["num_complete"]) == (8, 3)
    assert len(peer.chats) == 8  # nothing is tried again


def test_a_stream_that_ends_without_done_but_with_its_reason_is_complete(peer: Peer, tmp_path: Path) -> None:
    peer.script(streams(event(chunk({"content": "A"})), event(chunk({}, "length"))))
    assert run_json(peer, tmp_path, "-n", "1", "--no-warm-up")["summary"]["errors"] == {}
    peer.script(streams(event(chunk({"content": "A"}))), refuses(400))
    told = run_json(peer, tmp_path, "-n", "3", "--no-warm-up")
    assert told["summary"]["errors"] == {"broken_off": 1, "http_400": 1}


def test_silence_is_a_failure_after_the_timeout(peer: Peer, tmp_path: Path) -> None:
    released = threading.Event()
    peer.script(is_silent_until(released))
    told = run_json(peer, tmp_path, "-n", "2", "-c", "2", "--timeout", "0.3", "--no-warm-up")
    released.set()
    assert told["summary"]["errors"] == {"timeout": 1}


@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        (refuses(429, "too many"), 5, "too many"),
        (refuses(401, "no such key"), 4, "no such key"),
        (refuses(500, "it broke"), 1, "it broke"),
    ],
)
def test_a_load_that_nothing_answers_fails_and_says_why(
    peer: Peer, behaviour: Behaviour, code: int, said: str
) -> None:
    peer.script(*[behaviour] * 3)
    result = run(peer, "-n", "3", "--no-warm-up")
    assert result.exit_code == code
    assert said in result.stderr


def test_no_server_is_code_three_with_its_address() -> None:
    result = runner.invoke(app, ["bench", "http://127.0.0.1:1"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert "cannot reach http://127.0.0.1:1" in result.stderr


def test_goodput_counts_what_met_the_objectives(peer: Peer, tmp_path: Path) -> None:
    peer.script(refuses(429))
    generous = run_json(peer, tmp_path, "-n", "4", "--slo-ttft", "60", "--slo-tpot", "60", "--no-warm-up")
    assert generous["summary"]["goodput"]["share"] == 0.75
    strict = run_json(peer, tmp_path, "-n", "4", "--slo-ttft", "0", "--no-warm-up")
    assert strict["summary"]["goodput"]["share"] == 0.0


def test_a_duration_ends_a_load(peer: Peer, tmp_path: Path) -> None:
    told = run_json(peer, tmp_path, "--duration", "0.2", "--rate", "50", "--pictures", "none")
    assert told["plan"]["num_requests"] is None
    assert told["samples"]
    assert all(sample["due_s"] < 0.2 for sample in told["samples"])


def test_the_plot_is_svg_with_both_distributions(peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "out.svg"
    assert run(peer, "-n", "3", "--plot", str(path)).exit_code == 0
    root = ElementTree.fromstring(path.read_text())
    assert root.tag.endswith("svg")
    assert len([node for node in root.iter() if node.tag.endswith("polyline")]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "wide"], "--size is 'wide'"),
        (["--size", "0x5"], "--size is '0x5'"),
        (["--size", "90000x90000"], "640x480"),
        (["--out", "/no/such/folder/out.json"], "there is no such folder"),
    ],
)
def test_wrong_usage_is_code_two_before_anything_is_asked(
    peer: Peer, arguments: list[str], said: str
) -> None:
    result = run(peer, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert peer.requests == []
