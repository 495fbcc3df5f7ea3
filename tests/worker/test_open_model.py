"""From a model's name to a model, or to a sentence that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import llava_worker
import pytest
from llava_wire.messages.job import Message
from llava_worker.open_model import StartupError, open_model
from llava_worker.settings import load_settings

TINY = Path(llava_worker.__file__).parent / "tiny"


def test_the_echo_model_announces_itself() -> None:
    model = open_model(load_settings(["--model", "echo", "--max-num-sequences", "3"]))
    assert (model.heartbeat.model, model.heartbeat.capacity) == ("echo", 3)
    assert model.heartbeat.context_length == model.engine.context_length
    assert model.prompts.build_chat([Message("user", ("Hi?",))]).token_ids


def test_the_tiny_model_is_called_tiny_llava() -> None:
    model = open_model(load_settings(["--model", "tiny", "--device", "cpu", "--precision", "fp32"]))
    assert model.heartbeat.model == "tiny-llava"
    assert model.heartbeat.image_spec.fit == "pad"
    assert model.heartbeat.context_length == model.engine.context_length
    assert (model.heartbeat.device, model.heartbeat.precision) == ("cpu", "fp32")


def test_the_time_until_ready_is_told_by_its_parts() -> None:
    times = open_model(load_settings(["--model", "tiny", "--device", "cpu", "--kv-cache-mb", "8"])).times
    assert min(times.import_s, times.weights_s, times.warmup_s) > 0
    assert times.import_s + times.weights_s + times.warmup_s <= times.total_s


def test_three_times_the_tokens_of_fp32_fit_in_8_bit() -> None:
    blocks = {}
    for kind in ("auto", "int8"):
        arguments = ["--model", "tiny", "--device", "cpu", "--precision", "fp32", "--kv-cache-mb", "8"]
        engine = open_model(load_settings([*arguments, "--kv-cache-dtype", kind])).engine
        blocks[kind] = engine.stats().num_blocks
    assert 3 < blocks["int8"] / blocks["auto"] < 4


def test_a_name_for_requests_may_be_given() -> None:
    assert open_model(load_settings(["--model", "echo", "--served-model-name", "x"])).heartbeat.model == "x"


def test_two_workers_never_share_an_id() -> None:
    settings = load_settings(["--model", "echo"])
    assert open_model(settings).heartbeat.worker_id != open_model(settings).heartbeat.worker_id


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "nowhere", "a/b/c"])
def test_a_model_that_is_nowhere_is_refused_with_what_could_be_given(name: str) -> None:
    with pytest.raises(StartupError, match="neither a folder nor 'tiny', 'echo'"):
        open_model(load_settings(["--model", name]))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be served"):
        open_model(load_settings(["--model", str(tmp_path)]))


def test_the_echo_worker_needs_no_model_library() -> None:
    program = (
        "import sys, llava_worker.worker\n"
        "from llava_worker.settings import load_settings\n"
        "from llava_worker.open_model import open_model\n"
        "open_model(load_settings(['--model', 'echo']))\n"
        "assert not {'torch', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_hub_that_cannot_be_reached_is_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "llava_worker", "--model", "nobody/nothing"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'nobody/nothing' cannot be fetched from the hub" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_adapters_folder_that_describes_nothing_takes_its_bases_words(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(TINY / "model.safetensors")
    part = {name: tensor for name, tensor in tensors.items() if name.startswith("multi_modal_projector.")}
    save_file(part, tmp_path / "mm_projector.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    flags = ["--conversation", "checkpoint", "--device", "cpu"]
    messages = [Message("user", ("What is this?",))]

    adapted = open_model(load_settings([*flags, "--model", str(tmp_path), "--base-model", "tiny"]))
    of_base = open_model(load_settings([*flags, "--model", "tiny"]))

    assert adapted.prompts.build_chat(messages) == of_base.prompts.build_chat(messages)


NUM_LEFT = """
import os, time
from llava_worker import __main__ as program
from llava_worker.settings import load_settings
before = len(os.listdir("/proc/self/task"))
settings = ["--model", "tiny", "--precision", "int8", "--threads", "2", "--kv-cache-mb", "8"]
kept = program.{loader}(load_settings(settings))
give_up = time.monotonic() + {patience_s}  # threads that have ended are gone a moment later
while (left := len(os.listdir("/proc/self/task")) - before) > {wanted} and time.monotonic() < give_up:
    pass
print(left)
"""


def num_threads_left(loader: str, *, wanted: int = 0, patience_s: float = 1) -> int:
    text = NUM_LEFT.format(loader=loader, wanted=wanted, patience_s=patience_s)
    program = [sys.executable, "-c", text]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()[-1])


def test_a_worker_starts_without_the_openmp_threads_of_its_loading() -> None:
    """Each is one with which the engine's own would have to share the cores, as OpenMP sees it."""
    with_them = num_threads_left("open_model")
    assert num_threads_left("_open", wanted=with_them - 1, patience_s=10) == with_them - 1
