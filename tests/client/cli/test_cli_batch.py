"""``llava-serve batch`` and ``embed`` against a real server."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from llava_cli import create_app
from llava_client import batch_request
from llava_client.batches import batch_file
from typer.testing import CliRunner

from tests.client.cli.command_line import start
from tests.client.scripted_server import PNG
from tests.machine_speed import scaled
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

runner = CliRunner()


def result_statuses(path: Path) -> dict[str, object]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["custom_id"]: (line["response"] or {}).get("status_code") for line in lines}


def test_a_batch_writes_its_results_and_failures_set_the_exit_code(stack: Stack, tmp_path: Path) -> None:
    good, bad = batch_request("good", "say yes"), batch_request("bad", "say no", temperature=9)
    (tmp_path / "all.jsonl").write_bytes(batch_file([good, bad], MODEL))
    (tmp_path / "good.jsonl").write_bytes(batch_file([good], MODEL))
    url_option = ["--base-url", stack.server.url]
    done = runner.invoke(create_app(), ["batch", str(tmp_path / "all.jsonl"), *url_option])
    assert (done.exit_code, result_statuses(tmp_path / "all.results.jsonl")) == (1, {"good": 200, "bad": 400})
    assert "completed: 1 of 2 requests succeeded, 1 failed" in done.stderr
    done = runner.invoke(
        create_app(), ["batch", str(tmp_path / "good.jsonl"), "-o", str(tmp_path / "out"), *url_option]
    )
    assert (done.exit_code, result_statuses(tmp_path / "out")) == (0, {"good": 200})


def test_a_batch_can_be_resumed_by_id_after_ctrl_c(stack: Stack, tmp_path: Path) -> None:
    requests = [batch_request("waits", "silent"), batch_request("good", "say yes")]
    (tmp_path / "in.jsonl").write_bytes(batch_file(requests, MODEL))
    url_option = ("--base-url", stack.server.url)
    with start("batch", "in.jsonl", *url_option, cwd=tmp_path) as process:
        assert process.stderr is not None
        batch_id = process.stderr.readline().strip()
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
        assert process.wait(scaled(30)) == 130
    assert f"llava-serve batch {batch_id} -o in.results.jsonl" in stderr
    stack.worker.release.set()
    done = runner.invoke(create_app(), ["batch", batch_id, "-o", str(tmp_path / "out"), *url_option])
    assert (done.exit_code, result_statuses(tmp_path / "out")) == (0, {"waits": 200, "good": 200})


def test_an_argument_that_is_neither_a_file_nor_an_id_is_rejected(tmp_path: Path) -> None:
    done = runner.invoke(create_app(), ["batch", str(tmp_path / "none.jsonl")])
    assert (done.exit_code, "neither a file nor a batch ID" in done.stderr) == (2, True)


def test_cancelling_a_batch_saves_its_results(stack: Stack, tmp_path: Path) -> None:
    url_option = ["--base-url", stack.server.url]
    data = batch_file([batch_request("waits", "silent")], MODEL)
    file = stack.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", data)}).json()["id"]
    batch = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch_id = stack.http.post("/v1/batches", json=batch).json()["id"]
    done = runner.invoke(
        create_app(), ["batch", batch_id, "--cancel", "-o", str(tmp_path / "out"), *url_option]
    )
    assert (done.exit_code, result_statuses(tmp_path / "out")) == (1, {"waits": None})


def test_embeddings_are_printed_one_per_line(stack: Stack, tmp_path: Path) -> None:
    url_option = ["--base-url", stack.server.url]
    (tmp_path / "a.png").write_bytes(PNG)
    assert (
        runner.invoke(create_app(), ["embed", "a", "abc", *url_option]).stdout == "[1.0, 0.0]\n[3.0, 0.0]\n"
    )
    assert (
        runner.invoke(create_app(), ["embed", "--image", str(tmp_path / "a.png"), *url_option]).stdout
        == "[0.0, 1.0]\n"
    )
    assert runner.invoke(create_app(), ["embed", *url_option]).exit_code == 2
