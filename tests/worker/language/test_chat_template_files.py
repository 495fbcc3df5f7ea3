"""Chat templates and their variables are read from the same files as in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from llava_worker.language.chat_template_files import read_chat_template, read_special_tokens
from llava_worker.language.prompt_formats import ChatTemplateError
from transformers import PreTrainedTokenizerFast, ProcessorMixin

LLAMA = Path(__file__).parents[2] / "data" / "prompts"
NAMED = [{"name": "tools", "template": "U"}, {"name": "default", "template": "T"}]
# The files in the order of their precedence.
FILES = {
    "processor_config.json": json.dumps({"chat_template": "processor"}),
    "chat_template.json": json.dumps({"chat_template": "json"}),
    "chat_template.jinja": "jinja",
    "tokenizer_config.json": json.dumps({"chat_template": "tokenizer"}),
}


def save(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def test_the_files_of_the_processor_take_precedence(tmp_path: Path) -> None:
    remaining = dict(FILES)
    for name in FILES:
        folder = save(tmp_path / name, remaining)
        processor, _ = ProcessorMixin.get_processor_dict(folder)
        expected = processor.get("chat_template", "tokenizer")
        assert read_chat_template(folder) == expected
        del remaining[name]


def test_the_default_of_several_named_templates_is_used(tmp_path: Path) -> None:
    for number, template in enumerate((NAMED, {"default": "T", "tools": "U"})):
        files = {"tokenizer_config.json": json.dumps({"chat_template": template})}
        assert read_chat_template(save(tmp_path / str(number), files)) == "T"


def test_folder_without_a_template_is_rejected(tmp_path: Path) -> None:
    files = {"tokenizer_config.json": json.dumps({"chat_template": NAMED[:1]})}
    for folder in (tmp_path, save(tmp_path / "no default", files)):
        with pytest.raises(ChatTemplateError, match="No chat template exists"):
            read_chat_template(folder)


def added(token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": token, "special": True, **flags}


def decoder(token: str) -> dict[str, Any]:
    return {key: value for key, value in added(token).items() if key != "__type"}


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "strings and objects": ({"bos_token": "<s>", "eos_token": added("</s>"), "pad_token": None}, {}),
    "empty": ({"bos_token": ""}, {}),
    "other names": (
        {"image_token": "<image>", "a_token": added("<a>"), "b_token": 3, "add_bos_token": True},
        {},
    ),
    "extra tokens with names": ({"extra_special_tokens": {"boi_token": "<boi>", "eoi": "<eoi>"}}, {}),
    "extra tokens without names": (
        {"extra_special_tokens": ["<a>"], "additional_special_tokens": ["<b>"]},
        {},
    ),
    "model-specific tokens": ({"model_specific_special_tokens": {"boi_token": "<boi>"}}, {}),
    "older checkpoint": (
        {"bos_token": "<s>"},
        {"bos_token": "<b>", "eos_token": decoder("</b>"), "c_token": "<c>"},
    ),
    "newer checkpoint": (
        {"bos_token": "<s>", "added_tokens_decoder": {"1": decoder("<s>")}},
        {"bos_token": "<b>", "eos_token": "</b>"},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_special_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config, token_map = CONFIGS[name]
    shutil.copy(LLAMA / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if token_map:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(token_map))
    expected = PreTrainedTokenizerFast.from_pretrained(tmp_path).special_tokens_map
    assert read_special_tokens(tmp_path) == expected
