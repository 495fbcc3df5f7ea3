"""Tests that the worker and transformers can load the benchmark checkpoint."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_cli.bench import Images, Plan
from llava_cli.bench.plan import conversations
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.language.hf_tokenizer import HFTokenizer
from safetensors import safe_open
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from bench.checkpoint import ensure_checkpoint, write_checkpoint
from bench.shape import LLAVA_1_5_SMALL, MINI
from tests.worker.checkpoints import Prompt, reference_logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("checkpoint") / "mini"
    write_checkpoint(path, MINI, dtype="float32", seed=3)
    yield path


def loading_info(folder: Path) -> dict[str, list[str]]:
    """Load the checkpoint with transformers. Return the missing, unexpected and mismatched keys."""
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    _, info = loaded
    return {name: list(keys) for name, keys in info.items() if keys}


def test_transformers_loads_exactly_the_expected_weights(folder: Path) -> None:
    assert loading_info(folder) == {}


def test_a_missing_weight_is_reported(folder: Path, tmp_path: Path) -> None:
    config = MINI.config("float32")
    config["vision_config"]["num_hidden_layers"] += 1
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert loading_info(tmp_path)["missing_keys"]


def test_the_engine_loads_the_checkpoint(folder: Path) -> None:
    engine, info = build_engine(EngineConfig(folder, precision="fp32", device="cpu"))
    assert (info.image_side, info.tokens_per_tile, info.vocab_size) == (28, 4, MINI.vocabulary)
    assert engine.context_length == MINI.context


def test_activations_neither_vanish_nor_explode(folder: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    logits = reference_logits(model, Prompt(token_ids=list(range(1, 60))))
    assert torch.isfinite(logits).all()
    assert 0.3 < float(logits.std()) < 3.0


def test_the_files_contain_the_tensors_of_the_shape(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found: dict[str, tuple[int, ...]] = {}
    for name in set(index.values()):
        with safe_open(folder / name, "pt") as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.offset_keys()}
    assert found == dict(MINI.tensors())
    assert set(index) == set(found)


def test_the_benchmark_shape_is_llava_1_5_with_a_1_3_billion_parameter_decoder() -> None:
    shapes = dict(LLAVA_1_5_SMALL.tensors())
    count = sum(
        torch.Size(size).numel() for name, size in shapes.items() if name.startswith("language_model")
    )
    assert 1.30e9 < count < 1.36e9
    assert LLAVA_1_5_SMALL.image_tokens == 576
    assert LLAVA_1_5_SMALL.image_token_id == 32000


def test_each_word_of_a_question_is_one_token_and_each_id_decodes_to_text(folder: Path) -> None:
    tokenizer = HFTokenizer(folder)
    _, conversation = itertools.islice(conversations(Plan(images=Images.NONE)), 2)
    question = conversation.questions[0]
    words = question.rsplit(" ", 1)[0]
    assert len(tokenizer.encode(words)) == len(words.split())
    ordinary = range(3, MINI.image_token_id)
    assert all(tokenizer.token_bytes(number) for number in ordinary)
    assert len({tokenizer.token_bytes(number) for number in range(400, MINI.image_token_id)}) > 1500


def test_transformers_encodes_the_same_tokens(folder: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = HFTokenizer(folder)
    text = "what is shown in this image, near the door (7)?"
    assert reference.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert len(reference) == MINI.vocabulary


def test_a_vocabulary_too_small_for_the_words_is_rejected(tmp_path: Path) -> None:
    small = MINI.__class__(**{**MINI.__dict__, "vocabulary": 600})
    with pytest.raises(ValueError, match="Use fewer words"):
        write_checkpoint(tmp_path / "small", small)


def test_an_incomplete_folder_is_written_again(folder: Path, tmp_path: Path) -> None:
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    (incomplete / "model-00001-of-00001.safetensors").write_bytes(b"half")
    assert ensure_checkpoint(incomplete, MINI) == incomplete
    assert json.loads((incomplete / "config.json").read_text())["model_type"] == "llava"
    before = (incomplete / "tokenizer.json").stat().st_mtime_ns
    ensure_checkpoint(incomplete, MINI)
    assert (incomplete / "tokenizer.json").stat().st_mtime_ns == before
