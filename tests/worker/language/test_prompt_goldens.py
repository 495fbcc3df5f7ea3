"""Golden prompts: token IDs computed by tools/prompt_goldens.py with the original LLaVA's rules.

The data folder contains the part of the Llama tokenizer that these conversations require.
LLAVA_LLAMA_TOKENIZER may be set to a folder with the complete tokenizer, which must yield the same IDs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.prompt_builder import PromptBuilder

Golden: TypeAlias = dict[str, Any]

FOLDER = Path(__file__).parents[2] / "data" / "prompts"
COMPLETE_FOLDER = os.environ.get("LLAVA_LLAMA_TOKENIZER")
GOLDENS: list[Golden] = json.loads((FOLDER / "conversations.json").read_text("utf-8"))
BY_NAME = {golden["about"]: golden for golden in GOLDENS}
TOKENIZER = HFTokenizer(FOLDER, image_token_id=-200)
IMAGE = ImageRef(digest="p", num_tiles=1, side=336, width=640, height=480)
BEFORE_IMAGE = [3148, 1001, 29901, 29871]
AFTER_IMAGE = [29871, 13, 5618, 338, 445, 29973, 319, 1799, 9047, 13566, 29901]


def encode(golden: Golden, tokenizer: HFTokenizer = TOKENIZER) -> list[int]:
    """Return the token IDs as in the original LLaVA, with a single -200 for each image."""
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES[golden["template"]],
        image_spec=ImageSpec(side=336, tokens_per_tile=1),
        context_length=4096,
    )
    messages = [
        Message(message["role"], tuple(IMAGE if part is None else part for part in message["content"]))
        for message in golden["messages"]
    ]
    return builder.build_chat(messages).token_ids


def assert_goldens(tokenizer: HFTokenizer) -> None:
    for name, golden in BY_NAME.items():
        assert encode(golden, tokenizer) == golden["ids"], name


def test_conversations_have_the_token_ids_of_the_original() -> None:
    assert_goldens(TOKENIZER)


@pytest.mark.parametrize("form", ["Metaspace always", "normalizer"])
def test_token_ids_do_not_depend_on_the_format_of_the_tokenizer_file(form: str, tmp_path: Path) -> None:
    description = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    if form == "normalizer":  # as in older tokenizer files
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        prefix = {"type": "Prepend", "prepend": "▁"}
        description |= {
            "normalizer": {"type": "Sequence", "normalizers": [prefix, space]},
            "pre_tokenizer": None,
        }
    else:
        description["pre_tokenizer"]["prepend_scheme"] = "always"
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text((FOLDER / "tokenizer_config.json").read_text())
    assert_goldens(HFTokenizer(tmp_path, image_token_id=-200))


@pytest.mark.skipif(COMPLETE_FOLDER is None, reason="LLAVA_LLAMA_TOKENIZER is not set to a folder")
def test_complete_llama_tokenizer_has_the_same_ids() -> None:
    assert_goldens(HFTokenizer(Path(COMPLETE_FOLDER or ""), image_token_id=-200))


def test_token_ids_around_an_image_match_the_original() -> None:
    token_ids = encode(BY_NAME["a picture first"])
    index = token_ids.index(-200)
    assert token_ids[index - 4 : index] == BEFORE_IMAGE
    assert token_ids[index + 1 :] == AFTER_IMAGE


def test_special_tokens_match_the_template() -> None:
    for name, golden in BY_NAME.items():
        num_answers = sum(message["role"] == "assistant" for message in golden["messages"])
        num_images = sum(message["content"].count(None) for message in golden["messages"])
        num_eos = {"llava_v0": 0, "v0_mmtag": 0, "v1_mmtag": num_answers + num_images}.get(
            golden["template"], num_answers
        )
        num_bos = 1 + (num_answers if golden["template"] == "llava_llama_2" else 0)
        token_ids = encode(golden)
        counts = [token_ids.count(token_id) for token_id in (0, 1, 2, -200)]
        assert counts == [0, num_bos, num_eos, num_images], name


def test_no_space_token_follows_the_end_of_an_assistant_message() -> None:
    token_ids = encode(BY_NAME["several turns without a picture"])
    assert token_ids[token_ids.index(2) + 1 :][:3] == BEFORE_IMAGE[:3]
