"""The engine is selected by the types in config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llava_worker.choose_engine import EngineSetting, choose_engine
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
        {"model_type": "llava", "text_config": {"model_type": "phi"}},
        {"model_type": "llava", "text_config": LLAMA, "vision_config": {"model_type": "pixtral"}},
    ],
)
def test_auto_selects_transformers_for_other_types(tmp_path: Path, config: dict[str, Any]) -> None:
    assert choose(tmp_path, config) == "transformers"


def test_a_configured_engine_is_used_for_every_model(tmp_path: Path) -> None:
    assert choose(tmp_path, {"model_type": "llava"}, "transformers") == "transformers"
    assert choose(tmp_path, {"model_type": "qwen2_vl"}, "native") == "native"


def test_a_type_that_no_engine_supports_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has model_type 'bert'\. The native engine supports llava"):
        choose(tmp_path, {"model_type": "bert"})
