"""``llava-serve batch`` and ``embed``, at a real controller."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from llava_cli import app
from llava_client import batch_request
from llava_client.batches import batch_file
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.client.scripted_server import PNG
from tests.machine_speed import scaled
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

runner = CliRunner()


def written(path: Path) -> dict[str, object]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["custom_id"]: (line["response"] or {}).get("status_code") for line in lines}


def test_a_file_becomes_a_file_of_results_and_its_failures_the_exit_code(
    stack: Stack, tmp_path: Path
) -> None:
    good, bad = batch_request("good", "say yes"), batch_request("bad", "say no", temperature=9)
    (tmp_path / "all.jsonl").write_bytes(batch_file([good, bad], MODEL))
    (tmp_path / "good.jsonl").write_bytes(batch_file([good], MODEL))
    at = ["--base-url", stack.server.url]
    done = runner.invoke(app, ["batch", str(tmp_path / "all.jsonl"), *at])
    assert (done.exit_code, written(tmp_path / "all.results.jsonl")) == (1, {"good": 200, "bad": 400})
    assert "completed: 1 of 2 answered, 1 failed" in done.stderr
    done = runner.invoke(app, ["batch", str(tmp_path / "good.jsonl"), "-o", str(tmp_path / "out"), *at])
    assert (done.exit_code, written(tmp_path / "out")) == (0, {"good": 200})


def test_after_ctrl_c_a_batch_is_gone_on_with_by_its_id(stack: Stack, tmp_path: Path) -> None:
    requests = [batch_request("waits", "silent"), batch_request("good", "say yes")]
    (tmp_path / "in.jsonl").write_bytes(batch_file(requests, MODEL))
    at = ("--base-url", stack.server.url)
    with start("batch", "in.jsonl", *at, cwd=tmp_path) as process:
        assert process.stderr is not None
        batch_id = process.stderr.readline().strip()
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
        assert process.wait(scaled(30)) == 130
    assert f"llava-serve batch {batch_id} -o in.results.jsonl" in stderr
    stack.worker.release.set()
    done = runner.invoke(app, ["batch", batch_id, "-o", str(tmp_path / "out"), *at])
    assert (done.exit_code, written(tmp_path / "out")) == (0, {"waits": 200, "good": 200})


def test_what_is_neither_a_file_nor_an_id_is_wrong_usage(tmp_path: Path) -> None:
    done = runner.invoke(app, ["batch", str(tmp_path / "none.jsonl")])
    assert (done.exit_code, "neither a file nor the id" in done.stderr) == (2, True)


def test_an_unwanted_batch_is_cancelled_and_its_results_are_taken(stack: Stack, tmp_path: Path) -> None:
    at = ["--base-url", stack.server.url]
    data = batch_file([batch_request("waits", "silent")], MODEL)
    file = stack.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", data)}).json()["id"]
    order = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch_id = stack.http.post("/v1/batches", json=order).json()["id"]
    done = runner.invoke(app, ["batch", batch_id, "--cancel", "-o", str(tmp_path / "out"), *at])
    assert (done.exit_code, written(tmp_path / "out")) == (1, {"waits": None})


def test_vectors_are_printed_one_a_line(stack: Stack, tmp_path: Path) -> None:
    at = ["--base-url", stack.server.url]
    (tmp_path / "a.png").write_bytes(PNG)
    assert runner.invoke(app, ["embed", "a", "abc", *at]).stdout == "[1.0, 0.0]\n[3.0, 0.0]\n"
    assert runner.invoke(app, ["embed", "--image", str(tmp_path / "a.png"), *at]).stdout == "[0.0, 1.0]\n"
    assert runner.invoke(app, ["embed", *at]).exit_code == 2
