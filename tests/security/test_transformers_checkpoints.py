"""A hostile checkpoint for the transformers engine ends in one sentence, and its code is never executed.

Most checkpoints are rejected by a check that the worker runs in a child process. Tests call it directly,
because each start of a worker costs seconds.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from llava_worker.engine.transformers.checkpoint_check import find_error

from tests.security.hostile_checkpoints import change_json
from tests.security.worker_starts import LOADED, REJECTED, WorkerStarts
from tests.worker.engine.transformers.families import write_family

MAX_CPU_S = 30.0
MAX_GROWN_BYTES = 512 << 20
MAX_LINE = 4500  # characters

Change = Callable[[Path], object]


def sets(file: str, path: str, value: object) -> Change:
    return lambda folder: change_json(folder, f"{file}.json", path, value)


def remove_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["visual.patch_embed.proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])


def use_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"code")


def leave_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SIZE = {"shortest_edge": 10**9, "longest_edge": 2 * 10**9}
HOSTILE: dict[str, tuple[Change, str]] = {
    "many layers": (
        sets("config", "text_config.num_hidden_layers", 10**9),
        "num_hidden_layers is 1000000000; the limit is 1024",
    ),
    "deep vision tower": (sets("config", "vision_config.depth", 10**8), "depth is 100000000"),
    "large layers": (
        sets("config", "text_config.hidden_size", 10**6),
        r"describes a model with \d+ parameters, but the weight files contain only",
    ),
    "negative size": (sets("config", "text_config.hidden_size", -4), "config.json is invalid"),
    "no context": (
        sets("config", "text_config.max_position_embeddings", 0),
        "max_position_embeddings is 0; it must be an integer of at least 1",
    ),
    "invalid end token": (sets("generation_config", "eos_token_id", "x"), "eos_token_id must be a token ID"),
    "many labels": (sets("config", "num_labels", 10**9), "num_labels is 1000000000; the limit is 4096"),
    "quantized weights": (sets("config", "quantization_config", {}), "has a quantization_config"),
    "huge patches": (
        sets("preprocessor_config", "temporal_patch_size", 10**9),
        "cannot process a test image: Unable to allocate",
    ),
    "unknown image processor": (
        sets("preprocessor_config", "image_processor_type", "os.system"),
        "The processor in .* could not be loaded",
    ),
    "truncated weights": (truncate_weights, "extends beyond the end of the file"),
    "pickle file": (use_pickle, "is a pickle file, which the transformers engine does not read"),
    "path outside the folder": (leave_folder, "contains a path outside of its folder"),
}
HOSTILE_TO_THE_WORKER: dict[str, tuple[Change, str]] = {
    "deep vision tower": HOSTILE["deep vision tower"],
    "huge images": (sets("preprocessor_config", "size", SIZE), "cannot process a test image: "),
    "wrong image token": (sets("config", "image_token_id", 5), "a test of the model failed"),
    "wrong shape": (sets("config", "vision_config.embed_dim", 8), "have the wrong shape. For example"),
    "missing tensor": (
        remove_tensor,
        "1 tensors are missing from the weight files in .*visual.patch_embed.proj.weight",
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("qwen2_vl", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def starts() -> Iterator[WorkerStarts]:
    with WorkerStarts() as starts:
        yield starts


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_rejected_by_the_check(name: str, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    assert find_error(str(folder)) is None
    change, error = HOSTILE[name]
    change(folder)
    found = find_error(str(folder))
    assert found is not None
    assert re.search(error, found), found


@pytest.mark.parametrize("name", HOSTILE_TO_THE_WORKER)
def test_a_worker_with_a_hostile_checkpoint_ends_in_one_sentence(
    name: str, base: Path, starts: WorkerStarts, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    change, error = HOSTILE_TO_THE_WORKER[name]
    change(folder)

    start = starts.start(folder, log=tmp_path / "log")

    assert "Traceback" not in start.output
    assert start.status == REJECTED, start.output
    assert len(start.errors) == 1 and len(start.errors[0]) <= MAX_LINE, start.output
    assert re.search(error, start.errors[0]), start.errors
    assert start.cpu_s < MAX_CPU_S, start
    assert start.grown_bytes < MAX_GROWN_BYTES, start


def test_code_in_a_checkpoint_is_not_executed(base: Path, starts: WorkerStarts, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    code = f"open({str(tmp_path / 'executed')!r}, 'w')\n"
    for module in ("configuration", "modeling", "processing"):
        (folder / f"{module}.py").write_text(code)
    change_json(
        folder,
        "config.json",
        "auto_map",
        {"AutoConfig": "configuration.Config", "AutoModelForImageTextToText": "modeling.Model"},
    )
    change_json(folder, "preprocessor_config.json", "auto_map", {"AutoImageProcessor": "processing.Images"})
    change_json(folder, "processor_config.json", "auto_map", {"AutoProcessor": "processing.Processor"})
    change_json(
        folder, "tokenizer_config.json", "auto_map", {"AutoTokenizer": ["processing.Tokenizer", None]}
    )
    change_json(folder, "tokenizer_config.json", "model_max_length", 10**30)  # harmless, and usual

    start = starts.start(folder, log=tmp_path / "log")

    assert start.status == LOADED, start.output
    assert not (tmp_path / "executed").exists()
