"""Opening models by name, and the error messages if a model cannot be opened."""

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


def test_echo_model_has_a_heartbeat_and_prompts() -> None:
    model = open_model(load_settings(["--model", "echo", "--max-num-sequences", "3"]))
    assert (model.heartbeat.model, model.heartbeat.capacity) == ("echo", 3)
    assert model.heartbeat.context_length == model.engine.context_length
    assert model.prompts.build_chat([Message("user", ("Hi?",))]).token_ids


def test_tiny_model_is_served_as_tiny_llava() -> None:
    model = open_model(load_settings(["--model", "tiny", "--device", "cpu", "--precision", "fp32"]))
    assert model.heartbeat.model == "tiny-llava"
    assert model.heartbeat.image_spec.fit == "pad"
    assert model.heartbeat.context_length == model.engine.context_length
    assert (model.heartbeat.device, model.heartbeat.precision) == ("cpu", "fp32")


def test_startup_time_is_reported_by_parts() -> None:
    times = open_model(load_settings(["--model", "tiny", "--device", "cpu", "--kv-cache-mb", "8"])).times
    assert min(times.import_s, times.weights_s, times.warmup_s) > 0
    assert times.import_s + times.weights_s + times.warmup_s <= times.total_s


def test_weights_are_stored_in_the_configured_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    model = open_model(load_settings(["--model", "tiny", "--weights-cache", str(folder)]))
    assert model.unstored_weights is not None
    model.unstored_weights.store_now()
    assert len(list(folder.glob("*.weights"))) == 1


@pytest.mark.parametrize("arguments", [[], ["--weights-cache", "off"]])
def test_weights_of_a_small_model_are_not_stored_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = open_model(load_settings(["--model", "tiny", *arguments]))
    assert model.unstored_weights is None
    assert not list(tmp_path.rglob("*.weights"))


def test_int8_kv_cache_has_at_least_three_times_the_blocks_of_fp32() -> None:
    blocks = {}
    for kind in ("auto", "int8"):
        arguments = ["--model", "tiny", "--device", "cpu", "--precision", "fp32", "--kv-cache-mb", "8"]
        engine = open_model(load_settings([*arguments, "--kv-cache-dtype", kind])).engine
        blocks[kind] = engine.stats().num_blocks
    assert 3 < blocks["int8"] / blocks["auto"] < 4


def test_more_sequences_than_tokens_in_a_step_are_rejected() -> None:
    flags = ["--model", "tiny", "--device", "cpu", "--max-num-sequences", "9", "--max-batch-tokens", "8"]
    with pytest.raises(StartupError, match="max_num_sequences is 9, but a step has at most 8 tokens"):
        open_model(load_settings(flags))


def test_served_model_name_can_be_configured() -> None:
    assert open_model(load_settings(["--model", "echo", "--served-model-name", "x"])).heartbeat.model == "x"


def test_worker_ids_are_unique() -> None:
    settings = load_settings(["--model", "echo"])
    assert open_model(settings).heartbeat.worker_id != open_model(settings).heartbeat.worker_id


def test_unknown_model_is_rejected_with_the_alternatives() -> None:
    for name in ("./nowhere", "/nowhere/model", "nowhere", "a/b/c"):
        with pytest.raises(StartupError, match="is not a folder, 'tiny', 'echo' or a Hugging Face Hub ID"):
            open_model(load_settings(["--model", name]))


def test_hf_prompt_style_changes_the_prompt() -> None:
    messages = [Message("user", ("Hi?",))]
    original, hf = (
        open_model(load_settings(["--model", "echo", *flags])).prompts.build_chat(messages).token_ids
        for flags in ([], ["--prompt-style", "hf"])
    )
    assert bytes(hf[1:]).decode() == "USER: Hi? ASSISTANT:"
    assert hf != original


def test_incompatible_conversation_template_is_rejected() -> None:
    for flags in (
        ["--conversation", "checkpoint"],
        ["--conversation", "mistral_instruct", "--prompt-style", "hf"],
    ):
        with pytest.raises(StartupError, match="cannot be used with this model"):
            open_model(load_settings(["--model", "echo", *flags]))


CHECKPOINT = ["--device", "cpu", "--kv-cache-mb", "8", "--conversation", "checkpoint"]


def test_checkpoint_template_that_never_ends_is_rejected_at_startup(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    for source, error in (
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "2 seconds to render",
        ),
        ("{% for %}", "chat template is invalid"),
    ):
        (tmp_path / "chat_template.jinja").write_text(source)
        with pytest.raises(StartupError, match=f"cannot be used with this model: .*{error}"):
            open_model(load_settings(["--model", str(tmp_path), *CHECKPOINT]))


def test_worker_itself_does_not_import_transformers() -> None:
    program = (
        "import sys\n"
        "from llava_wire.messages.job import Message\n"
        "from llava_worker.settings import load_settings\n"
        "from llava_worker.open_model import open_model\n"
        f"model = open_model(load_settings(['--model', 'tiny', *{CHECKPOINT!r}]))\n"
        "assert model.prompts.build_chat([Message('user', ('Hi?',))]).token_ids\n"
        "assert not {'transformers', 'jinja2.sandbox'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_folder_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be served"):
        open_model(load_settings(["--model", str(tmp_path)]))


def test_echo_worker_imports_no_model_library() -> None:
    program = (
        "import sys, llava_worker.worker\n"
        "from llava_worker.settings import load_settings\n"
        "from llava_worker.open_model import open_model\n"
        "open_model(load_settings(['--model', 'echo']))\n"
        "assert not {'torch', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_echo_worker_that_may_load_models_has_imported_all_modules_before_it_registers(
    tmp_path: Path,
) -> None:
    """The import of torch holds the GIL for longer than a short lease on a busy machine."""
    flags = ["--loadable-models", str(tmp_path), "--device", "cpu", "--kv-cache-mb", "64"]
    program = (
        "import sys\n"
        "from llava_worker.settings import load_settings\n"
        "from llava_worker.open_model import open_model\n"
        f"open_model(load_settings(['--model', 'echo', *{flags!r}]))\n"
        "imported = set(sys.modules)\n"
        f"open_model(load_settings(['--model', 'tiny', *{flags!r}]))\n"
        "assert set(sys.modules) == imported, set(sys.modules) - imported\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unreachable_hub_is_reported_without_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "llava_worker", "--model", "unknown/missing"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'unknown/missing' could not be downloaded from the Hugging Face Hub" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_adapter_without_a_chat_template_uses_the_template_of_its_base(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(TINY / "model.safetensors")
    part = {name: tensor for name, tensor in tensors.items() if name.startswith("multi_modal_projector.")}
    save_file(part, tmp_path / "mm_projector.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    flags = ["--conversation", "checkpoint", "--device", "cpu"]
    messages = [Message("user", ("What is this?",))]

    adapted = open_model(load_settings([*flags, "--model", str(tmp_path), "--base-model", "tiny"]))
    base = open_model(load_settings([*flags, "--model", "tiny"]))

    assert adapted.prompts.build_chat(messages) == base.prompts.build_chat(messages)


COUNT_NEW_THREADS = """
import os
from llava_worker import worker_process as program
from llava_worker.engine import Sequence
from llava_worker.model_thread import ModelThread
from llava_worker.settings import load_settings

def count():
    return len(os.listdir("/proc/self/task"))

def run_engine():
    model.engine.add(Sequence(seq_id="one", prompt_ids=[1, 5, 6], max_new_tokens=4))
    while model.engine.num_sequences:
        model.engine.step()

settings = ["--model", "tiny", "--precision", "int8", "--threads", "2", "--kv-cache-mb", "8"]
model = program._open(load_settings(settings))
for thread in (model.thread, ModelThread()):
    before = count()
    thread.submit(run_engine).result()
    print(count() - before)
"""


def test_the_engine_reuses_the_openmp_threads_of_the_loader() -> None:
    """Otherwise, the engine's threads would share the cores with idle OpenMP threads."""
    completed = subprocess.run(
        [sys.executable, "-c", COUNT_NEW_THREADS], capture_output=True, text=True, check=True
    )
    same_thread, other_thread = map(int, completed.stdout.split()[-2:])
    assert same_thread == 0
    assert other_thread >= 1
