"""Interruptions of ``llava-serve batch --images``, against a real server with a scripted worker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, run

import pytest

from tests.client.cli.command_line import MAIN, start
from tests.client.cli.folder.image_folder import add_images, png, read_results, run_batch
from tests.client.scripted_server import ScriptedServer, completes, returns_error
from tests.machine_speed import scaled
from tests.server.conftest import OwnStack
from tests.waiting import wait_until

CONCURRENCY = 32


@contextmanager
def started(url: str, folder: Path, output: Path, prompt: str = "say yes") -> Iterator[Popen[str]]:
    """Run the command in a process, which is killed at the end."""
    command = ("batch", "--images", str(folder), "--prompt", prompt, "--out", str(output))
    with start(*command, "--concurrency", str(CONCURRENCY), "--base-url", url) as process:
        try:
            yield process
        finally:
            process.kill()


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.e2e
def test_2000_images_are_each_complete_exactly_once_after_two_interruptions(
    own_stack: OwnStack, tmp_path: Path
) -> None:
    stack = own_stack()
    names = add_images(tmp_path / "photos", 2000)
    output = tmp_path / "captions.jsonl"
    with started(stack.server.url, tmp_path / "photos", output) as process:
        wait_until(lambda: num_lines(output) > 500 or process.poll() is not None, timeout_s=120)
        process.send_signal(signal.SIGKILL)
    num_before = num_lines(output)
    assert 500 < num_before < 2000
    with started(stack.server.url, tmp_path / "photos", output) as process:
        wait_until(lambda: num_lines(output) > 1200 or process.poll() is not None, timeout_s=120)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=scaled(60))
        assert process.returncode == 130
    assert 1200 < num_lines(output) < 2000
    assert f"{2000 - num_lines(output)} of 2000 images remain. To continue, run the same command" in stderr
    done = run_batch(stack.server.url, tmp_path / "photos", output, "--concurrency", str(CONCURRENCY))
    assert (done.exit_code, "2000 of 2000 images succeeded" in done.stderr) == (0, True), done.stderr
    records = read_results(output)
    assert [record["image"] for record in records] == names
    assert {record["text"] for record in records} == {"yes"}
    # Only requests that were running at an interruption are sent twice.
    assert len(stack.worker.assignments) <= 2000 + 2 * CONCURRENCY


def test_a_line_that_was_only_partly_written_is_replaced(server: ScriptedServer, tmp_path: Path) -> None:
    names = add_images(tmp_path / "photos", 3)
    output = tmp_path / "out.jsonl"
    assert run_batch(server.url, tmp_path / "photos", output).exit_code == 0
    complete = output.read_bytes()
    for num_bytes in (1, 50):
        output.write_bytes(complete[:-num_bytes])
        server.requests.clear()
        assert run_batch(server.url, tmp_path / "photos", output).exit_code == 0
        assert [record["image"] for record in read_results(output)] == names
        # Without its newline, a line is still complete.
        assert len(server.chats) == (0 if num_bytes == 1 else 1)


def test_only_one_process_writes_the_results(own_stack: OwnStack, tmp_path: Path) -> None:
    stack = own_stack()
    add_images(tmp_path / "photos", 1)
    output = tmp_path / "out.jsonl"
    with started(stack.server.url, tmp_path / "photos", output, "silent"):
        wait_until(lambda: len(stack.worker.assignments) == 1)
        second = run_batch(stack.server.url, tmp_path / "photos", output, prompt="silent")
        assert (second.exit_code, "Another process is writing" in second.stderr) == (2, True)
    stack.worker.release.set()
    after_kill = run_batch(stack.server.url, tmp_path / "photos", output, prompt="silent")
    assert after_kill.exit_code == 0, after_kill.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "photos"]


def test_a_full_disk_stops_the_run_and_leaves_complete_lines(server: ScriptedServer, tmp_path: Path) -> None:
    names = add_images(tmp_path / "photos", 20)
    output = tmp_path / "out.jsonl"
    # The maximum file size is 4 blocks of 512 or 1024 bytes. A line has about 300 bytes.
    limited = ["sh", "-c", 'ulimit -f 4 && exec "$@"', "sh", *MAIN]
    command = ["batch", "--images", "photos", "--prompt", "say yes", "--out", "out.jsonl"]
    ended = run([*limited, *command, "--base-url", server.url], cwd=tmp_path, stderr=PIPE, text=True)
    assert ended.returncode == 1
    assert "llava-serve: Cannot write 'out.jsonl': File too large." in ended.stderr
    assert 2 < len(read_results(output)) == num_lines(output) < 20
    assert run_batch(server.url, tmp_path / "photos", output).exit_code == 0
    assert [record["image"] for record in read_results(output)] == names


def test_a_busy_server_stops_the_run_and_the_next_run_continues(
    server: ScriptedServer, tmp_path: Path
) -> None:
    add_images(tmp_path / "photos", 4)
    output = tmp_path / "out.jsonl"
    busy = returns_error(503, "No worker is available.", retry_after_ms="1")
    server.script(completes, completes, *[busy] * 11)
    stopped = run_batch(server.url, tmp_path / "photos", output, "--concurrency", "1")
    assert (stopped.exit_code, num_lines(output)) == (5, 2)
    assert "2 of 4 images remain. To continue, run the same command again." in stopped.stderr
    server.script(busy, busy)  # a few of these errors are retried
    assert run_batch(server.url, tmp_path / "photos", output).exit_code == 0
    assert len(server.chats) == 17


def test_an_unreachable_server_changes_no_results(server: ScriptedServer, tmp_path: Path) -> None:
    add_images(tmp_path / "photos", 2)
    (tmp_path / "photos" / "empty.png").write_bytes(b"")
    output = tmp_path / "out.jsonl"
    assert run_batch(server.url, tmp_path / "photos", output).exit_code == 1
    before = output.read_bytes()
    (tmp_path / "photos" / "0000.png").write_bytes(png(1))
    assert run_batch("http://127.0.0.1:9", tmp_path / "photos", output).exit_code == 3
    assert output.read_bytes() == before
