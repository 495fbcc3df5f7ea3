"""The engine is selected by the types in config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from llava_worker.choose_engine import EngineSetting, choose_engine
from llava_worker.engine.transformers.checkpoint import read_checkpoint
from llava_worker.model.config.model_config import read_config
from llava_worker.model.config.untrusted_file import CheckpointError

LLAMA = {"model_type": "llama"}
CLIP = {"model_type": "clip_vision_model"}


def choose(folder: Path, config: dict[str, Any], setting: EngineSetting = "auto") -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return choose_engine(setting, folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llava", "text_config": LLAMA, "vision_config": CLIP},
        {"model_type": "llava_next", "text_config": {"model_type": "qwen2"}},
        {"model_type": "llava"},
        {"model_type": "llava_onevision"},
        {"model_type": "vipllava"},
        {"model_type": "llava", "text_config": {"model_type": "phi"}},
        {"model_type": "tinyllava", "text_config": {"model_type": "phi3"}},
        {"model_type": "tiny_llava_phi", "mm_vision_tower": "bczhou/TinyLLaVA-3.1B-SigLIP"},
        {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        {"model_type": "llava", "text_config": 5},  # the native engine reports the error
        {},
    ],
)
def test_auto_selects_the_native_engine_for_llava(tmp_path: Path, config: dict[str, Any]) -> None:
    assert choose(tmp_path, config) == "native"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2_vl"},
        {"model_type": "llava", "text_config": {"model_type": "gemma"}},
        {"model_type": "llava", "text_config": LLAMA, "vision_config": {"model_type": "pixtral"}},
    ],
)
def test_auto_selects_transformers_for_other_types(tmp_path: Path, config: dict[str, Any]) -> None:
    assert choose(tmp_path, config) == "transformers"


def test_a_configured_engine_is_used_for_every_model(tmp_path: Path) -> None:
    assert choose(tmp_path, {"model_type": "llava"}, "transformers") == "transformers"
    assert choose(tmp_path, {"model_type": "qwen2_vl"}, "native") == "native"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"model_type": "bert"},
            "has model_type 'bert'; the native engine supports llava, llava_next, llava_onevision, vipllava, "
            "tinyllava and LLaVA's original layout, and transformers has no AutoModelForImageTextToText for "
            "model_type 'bert', so use a checkpoint of a supported type",
        ),
        (
            {"model_type": "tinyllava", "text_config": {"model_type": "gemma"}},
            "has text_config.model_type 'gemma'; the native engine supports llama, mistral, qwen2, phi, phi3 "
            "and",
        ),
    ],
)
def test_a_type_that_no_engine_supports_is_an_error_that_names_supported_types(
    tmp_path: Path, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        choose(tmp_path, config)


@pytest.mark.parametrize("engine", ["auto", "native", "transformers"])
@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "config.json has no model_type, which identifies the model, so replace the file with"),
        (
            {"model_type": ["llava"]},
            r"config.json has model_type \['llava'\]; it must be a string, for example",
        ),
        (
            {"model_type": None, "mm_vision_tower": "x"},
            "config.json has model_type None; it must be a string",
        ),
    ],
)
def test_every_engine_reports_a_missing_or_invalid_model_type_with_a_remedy(
    tmp_path: Path, engine: EngineSetting, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read(tmp_path, config, engine)


@pytest.mark.parametrize("engine", ["auto", "native", "transformers"])
@pytest.mark.parametrize("rest", [{}, {"mm_vision_tower": "x"}])
def test_a_long_model_type_is_shortened_in_errors(
    tmp_path: Path, engine: EngineSetting, rest: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as error:
        read(tmp_path, {"model_type": "x" * 10_000, **rest}, engine)
    assert 0 < str(error.value).count("x" * 50) < 4


def read(folder: Path, config: dict[str, Any], engine: EngineSetting) -> None:
    """Read the checkpoint with the engine that is selected for it."""
    if choose(folder, config, engine) == "native":
        read_config(folder)
    else:
        read_checkpoint(folder)
