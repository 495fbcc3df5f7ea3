"""Requests, measurements, output and exit codes of ``bench``."""

from __future__ import annotations

import asyncio
import json
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from llava_cli import create_app
from llava_cli.bench import Images, Plan, run_load
from typer.testing import CliRunner

from tests.client.scripted_server import (
    DELTAS,
    Responder,
    ScriptedServer,
    chunk,
    closes_connection,
    event,
    hangs_until,
    returns_error,
    streams,
)

runner = CliRunner()


def run(server: ScriptedServer, *arguments: str) -> Any:
    return runner.invoke(create_app(), ["bench", server.url, *arguments])


def run_json(server: ScriptedServer, folder: Path, *arguments: str) -> dict[str, Any]:
    path = folder / "out.json"
    result = run(server, "--out", str(path), *arguments)
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(path.read_text()))


def image_of(body: dict[str, Any]) -> str | None:
    content = body["messages"][0]["content"]
    return None if isinstance(content, str) else str(content[0]["image_url"]["url"])


def test_a_load_prints_a_table_and_nothing_on_stderr(server: ScriptedServer) -> None:
    result = run(server, "-n", "6", "-c", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "6 of 6 requests completed" in result.stdout
    assert "time to first token" in result.stdout
    assert len(server.chats) == 7  # including the warm-up request


def test_images_are_new_shared_or_omitted_as_requested(server: ScriptedServer) -> None:
    run(server, "-n", "4", "--images", "new")
    assert len({image_of(request.body) for request in server.chats}) == 5
    server.requests.clear()
    run(server, "-n", "4", "--images", "same")
    warm_up, *measured = [image_of(request.body) for request in server.chats]
    assert set(measured).isdisjoint({warm_up, None})
    assert len(set(measured)) == 1
    server.requests.clear()
    run(server, "-n", "2", "--images", "none")
    assert {image_of(request.body) for request in server.chats} == {None}


def test_the_same_seed_repeats_the_load_and_the_default_seed_is_random(server: ScriptedServer) -> None:
    loads = []
    for seed in (["--seed", "7"], ["--seed", "7"], [], []):
        server.requests.clear()
        run(server, "-n", "2", *seed)
        loads.append(json.dumps([request.body for request in server.chats]))
    assert loads[0] == loads[1]
    assert len(set(loads)) == 3


def test_a_request_contains_the_options_of_the_load(server: ScriptedServer) -> None:
    run(server, "-n", "1", "--max-tokens", "9", "--words", "5", "--images", "none", "-m", "other")
    body = server.last_body
    assert (body["model"], body["max_tokens"], body["temperature"], body["ignore_eos"]) == (
        "other",
        9,
        0,
        True,
    )
    assert len(body["messages"][0]["content"].split()) == 6  # five words, followed by the index


def test_the_number_of_tokens_in_the_first_piece_is_read_from_the_stream(server: ScriptedServer) -> None:
    def counted(delta: dict[str, Any], num: int, finish_reason: str | None = None) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": num, "total_tokens": 3 + num}
        return event(chunk(delta, finish_reason) | {"usage": usage})

    pieces = [counted({"content": "many"}, 5), counted({"content": "one"}, 6), counted({}, 6, "length")]
    server.script(*[streams(*pieces, b"data: [DONE]\n\n")] * 2)
    load = asyncio.run(run_load(Plan(num_requests=1, images=Images.NONE), server.url))

    [sample] = load.samples
    assert sample.num_tokens == 6
    assert sample.num_first_tokens in (5, 6)  # 6 if both pieces arrived at once
    assert server.last_body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_a_server_without_ignore_eos_is_measured_without_it(server: ScriptedServer) -> None:
    server.script(returns_error(422, "unknown field ignore_eos"))
    result = run(server, "-n", "2")
    assert result.exit_code == 0
    assert "does not support ignore_eos" in result.stderr
    assert ["ignore_eos" in request.body for request in server.chats] == [True, False, False, False]


def test_a_warm_up_rejected_for_another_reason_ends_the_benchmark(server: ScriptedServer) -> None:
    server.script(returns_error(422, "no such model"), returns_error(422, "no such model"))
    result = run(server, "-n", "2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no such model" in result.stderr


def test_a_busy_server_receives_one_request_and_is_not_measured(server: ScriptedServer) -> None:
    server.script(returns_error(429, "too many"))
    result = run(server, "-n", "2")
    assert (result.exit_code, len(server.chats)) == (5, 1)


def test_a_conversation_sends_its_earlier_turns(server: ScriptedServer, tmp_path: Path) -> None:
    report = run_json(server, tmp_path, "-n", "1", "--turns", "3", "--no-warm-up")
    assert [len(request.body["messages"]) for request in server.chats] == [1, 3, 5]
    assert server.last_body["messages"][1] == {"role": "assistant", "content": "".join(DELTAS)}
    assert [sample["turn"] for sample in report["samples"]] == [0, 1, 2]


def test_the_json_file_contains_every_request(server: ScriptedServer, tmp_path: Path) -> None:
    report = run_json(server, tmp_path, "-n", "3", "--seed", "5")
    assert (report["format"], report["model"], report["plan"]["seed"]) == (1, "tiny-llava", 5)
    assert len(report["samples"]) == 3
    for sample in report["samples"]:
        assert 0 < sample["ttft_s"] <= sample["total_s"]
        assert len(sample["gaps_s"]) == len(DELTAS) - 1
        assert sample["ttft_s"] + sum(sample["gaps_s"]) <= sample["total_s"]
        assert (sample["num_tokens"], sample["prompt_tokens"], sample["cached_tokens"]) == (4, 71, 64)
    assert report["summary"]["num_complete"] == 3
    assert report["summary"]["output_tokens"] == 12


def test_errors_are_counted_by_kind_and_other_requests_are_measured(
    server: ScriptedServer, tmp_path: Path
) -> None:
    broken = streams(event(chunk({"content": "A"})), then=closes_connection)
    failed = streams(event({"error": {"message": "the worker crashed"}}))
    empty = streams(event(chunk({}, "stop")), event("[DONE]"))
    server.script(
        returns_error(429, retry_after="9"), returns_error(429, retry_after="9"), broken, failed, empty
    )
    report = run_json(server, tmp_path, "-n", "8", "--no-warm-up")
    kinds = {"http_429": 2, "broken_off": 1, "error_event": 1, "no_text": 1}
    assert report["summary"]["errors"] == kinds
    assert (report["summary"]["num_requests"], report["summary"]["num_complete"]) == (8, 3)
    assert len(server.chats) == 8  # no retries


def test_a_stream_with_a_finish_reason_but_without_done_is_complete(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.script(streams(event(chunk({"content": "A"})), event(chunk({}, "length"))))
    assert run_json(server, tmp_path, "-n", "1", "--no-warm-up")["summary"]["errors"] == {}
    server.script(streams(event(chunk({"content": "A"}))), returns_error(400))
    report = run_json(server, tmp_path, "-n", "3", "--no-warm-up")
    assert report["summary"]["errors"] == {"broken_off": 1, "http_400": 1}


def test_a_request_without_data_fails_after_the_timeout(server: ScriptedServer, tmp_path: Path) -> None:
    released = threading.Event()
    server.script(hangs_until(released))
    path = tmp_path / "out.json"
    result = run(server, "--out", str(path), "-n", "1", "--timeout", "0.2", "--no-warm-up")
    released.set()
    assert result.exit_code == 3
    assert json.loads(path.read_text())["summary"]["errors"] == {"timeout": 1}


@pytest.mark.parametrize(
    ("responder", "code", "message"),
    [
        (returns_error(429, "too many"), 5, "too many"),
        (returns_error(401, "no such key"), 4, "no such key"),
        (returns_error(500, "it broke"), 1, "it broke"),
    ],
)
def test_a_load_without_a_completed_request_fails_with_the_reason(
    server: ScriptedServer, responder: Responder, code: int, message: str
) -> None:
    server.script(*[responder] * 3)
    result = run(server, "-n", "3", "--no-warm-up")
    assert result.exit_code == code
    assert message in result.stderr


def test_an_unreachable_server_exits_with_code_three_and_its_url() -> None:
    result = runner.invoke(create_app(), ["bench", "http://127.0.0.1:1"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert "Cannot reach http://127.0.0.1:1" in result.stderr


def test_goodput_counts_requests_within_the_objectives(server: ScriptedServer, tmp_path: Path) -> None:
    server.script(returns_error(429))
    generous = run_json(server, tmp_path, "-n", "4", "--slo-ttft", "60", "--slo-tpot", "60", "--no-warm-up")
    assert generous["summary"]["goodput"]["share"] == 0.75
    strict = run_json(server, tmp_path, "-n", "4", "--slo-ttft", "0", "--no-warm-up")
    assert strict["summary"]["goodput"]["share"] == 0.0


def test_a_load_ends_after_its_duration(server: ScriptedServer, tmp_path: Path) -> None:
    report = run_json(server, tmp_path, "--duration", "0.2", "--rate", "50", "--images", "none")
    assert report["plan"]["num_requests"] is None
    assert report["samples"]
    assert all(sample["due_s"] < 0.2 for sample in report["samples"])


def test_the_plot_is_an_svg_with_both_distributions(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "out.svg"
    assert run(server, "-n", "3", "--plot", str(path)).exit_code == 0
    root = ElementTree.fromstring(path.read_text())
    assert root.tag.endswith("svg")
    assert len([node for node in root.iter() if node.tag.endswith("polyline")]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "wide"], "--size is 'wide'"),
        (["--size", "0x5"], "--size is '0x5'"),
        (["--size", "90000x90000"], "640x480"),
        (["--out", "/no/such/folder/out.json"], "the folder does not exist"),
    ],
)
def test_invalid_usage_exits_with_code_two_before_any_request(
    server: ScriptedServer, arguments: list[str], message: str
) -> None:
    result = run(server, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert server.requests == []
