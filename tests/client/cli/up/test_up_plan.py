"""The launch plan and the output of ``up``, tested without running the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llava_cli.up.display import Display, commands, example_image
from llava_cli.up.plan import LaunchPlan

from tests.client.scripted_server import PNG, ScriptedServer
from tests.machine_speed import scaled

SECRET = "redis://:password@queue:6379/0"


def plan(**changes: object) -> LaunchPlan:
    defaults: dict[str, object] = {
        "model": "tiny",
        "served_model_name": None,
        "num_workers": 1,
        "precision": "auto",
        "device": "cpu",
        "host": "127.0.0.1",
        "port": 8000,
    }
    return LaunchPlan(**{**defaults, **changes})  # type: ignore[arg-type]


def test_the_redis_url_is_in_the_environment_but_not_on_the_command_line() -> None:
    for program in (plan().server(SECRET), *plan().workers(SECRET)):
        assert program.environment["LLAVA_REDIS_URL"] == SECRET
        assert "password" not in " ".join(program.command) + repr(program)


def test_the_redis_url_file_is_removed_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_REDIS_URL_FILE", "/run/secrets/redis")
    assert "LLAVA_REDIS_URL_FILE" not in plan().server(SECRET).environment


def test_multiple_workers_are_numbered_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    workers = plan(num_workers=1000, served_model_name="mine").workers(SECRET)
    assert (workers[0].name, workers[-1].name) == ("worker-1", "worker-1000")
    assert workers[0].environment["OMP_NUM_THREADS"] == "1"
    assert workers[0].command[-2:] == ("--served-model-name", "mine")
    assert "OMP_NUM_THREADS" not in plan().workers(SECRET)[0].environment


def test_no_key_is_generated_on_loopback() -> None:
    assert [LaunchPlan.generate_key(host, {}) for host in ("127.0.0.1", "::1", "localhost")] == [
        None,
        None,
        None,
    ]


def test_a_loopback_server_requires_a_key_only_if_keys_are_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plan().server(SECRET).environment["LLAVA_AUTH"] == "false"
    assert "LLAVA_AUTH" not in plan(host="0.0.0.0", generated_key="lv-key").server(SECRET).environment
    monkeypatch.setenv("LLAVA_API_KEYS", "mine-1234")
    assert "LLAVA_AUTH" not in plan().server(SECRET).environment


def test_a_reachable_server_requires_a_generated_key() -> None:
    first, second = LaunchPlan.generate_key("0.0.0.0", {}), LaunchPlan.generate_key("0.0.0.0", {})
    assert first and second and first != second
    reachable = plan(host="0.0.0.0", generated_key=first)
    assert reachable.server(SECRET).environment["LLAVA_API_KEYS"] == first
    assert first not in repr(reachable)


def test_workers_report_the_progress_of_downloads_unless_configured_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plan().workers(SECRET)[0].environment["TQDM_POSITION"] == "-1"
    monkeypatch.setenv("TQDM_POSITION", "0")
    assert plan().workers(SECRET)[0].environment["TQDM_POSITION"] == "0"


@pytest.mark.parametrize("name", ["LLAVA_API_KEYS", "LLAVA_API_KEYS_FILE"])
def test_configured_keys_are_not_replaced(name: str) -> None:
    assert LaunchPlan.generate_key("0.0.0.0", {name: "mine-1234"}) is None


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("box.lan", "http://box.lan:8000"),
    ],
)
def test_the_printed_url_works_on_this_machine(host: str, url: str) -> None:
    assert plan(host=host).base_url == url


def test_the_printed_curl_command_works(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "it's an image.png").write_bytes(PNG * 1000)
    port = int(server.url.rpartition(":")[2])
    image = example_image(tmp_path)
    line = commands(plan(port=port, generated_key="lv-key"), 'the "model"', image)["curl"]
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, timeout=scaled(30))
    assert json.loads(done.stdout)["choices"]
    assert server.chats[-1].headers["authorization"] == "Bearer lv-key"
    assert server.last_body["model"] == 'the "model"'
    url = server.last_body["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,iVBOR")
    assert "\n" not in url


@pytest.mark.parametrize("name", ["Python", "the openai package"])
def test_the_printed_python_commands_work(server: ScriptedServer, tmp_path: Path, name: str) -> None:
    (tmp_path / "it's an image.png").write_bytes(PNG)
    port = int(server.url.rpartition(":")[2])
    printed = commands(plan(port=port, generated_key="lv-key"), "the-model", "it's an image.png")
    (line,) = (command for title, command in printed.items() if title.startswith(name))
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert server.chats[-1].headers["authorization"] == "Bearer lv-key"


def test_the_curl_command_uses_a_placeholder_without_example_images(tmp_path: Path) -> None:
    assert example_image(tmp_path) == "photo.png"


def test_the_output_without_a_terminal_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(is_verbose=False)
    with display.waiting("starting"):
        display.line("worker-1", "loading [weights]")
        display.line(
            "worker-1", "2030-01-31 10:00:00,000 INFO llava_worker.selected: precision: bf16, because"
        )
    display.ready(plan(generated_key="lv-key"), "tiny-llava", None)
    display.tail(["last [line]"])
    shown = capsys.readouterr()
    for fact in (
        "http://127.0.0.1:8000/\n",
        "http://127.0.0.1:8000/v1\n",
        "tiny-llava",
        "precision   bf16, because\n",
        "lv-key",
        "Ctrl-C",
    ):
        assert fact in shown.out
    assert "\x1b" not in shown.out + shown.err
    assert shown.err == "starting\n  last [line]\n"


def test_what_a_worker_selects_later_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(is_verbose=False)
    log = "2030-01-31 10:00:00,000 WARNING llava_worker.selected: "
    display.line("worker-1", f"{log}kernels: compiled")
    display.ready(plan(), "tiny-llava", None)
    for worker in ("worker-1", "worker-2"):
        display.line(worker, f"{log}kernels: compiled")
        display.line(worker, f"{log}weights: not stored in /cache, because the disk is full")
        display.line(worker, "2030-01-31 10:00:00,000 WARNING llava_worker: something else")
    assert capsys.readouterr().err == "weights: not stored in /cache, because the disk is full\n"


def test_verbose_prints_each_line_once_with_the_name_of_the_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display(is_verbose=True)
    display.line("worker-1", "loading [weights]")
    display.tail(["loading [weights]"])
    assert capsys.readouterr().err == " worker-1 | loading [weights]\n"


def test_up_prints_the_url_of_its_private_redis_server_but_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Display(is_verbose=False)
    display.ready(plan(precision="int8"), "tiny-llava", "unix:///tmp/a%20b/redis.sock")
    expected = f"LLAVA_REDIS_URL=unix:///tmp/a%20b/redis.sock {sys.executable} -m llava_worker --model tiny "
    assert f"{expected}--precision int8 --device cpu\n" in capsys.readouterr().out
    display.ready(plan(), "tiny-llava", None)
    assert "LLAVA_REDIS_URL" not in capsys.readouterr().out


def test_up_with_the_bundled_model_explains_how_to_serve_a_real_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Display(is_verbose=False).ready(plan(model="tiny"), "tiny-llava", None)
    assert "llava-serve up --model llava-hf/llava-1.5-7b-hf --precision int4" in capsys.readouterr().out
    Display(is_verbose=False).ready(plan(model="llava-hf/llava-1.5-7b-hf"), "llava-1.5-7b-hf", None)
    assert "--precision int4" not in capsys.readouterr().out
