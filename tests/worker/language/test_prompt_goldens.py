"""Golden ids: prompts in the Llama tokenizer, by tools/prompt_goldens.py from the original's rules.

The folder holds the part of the tokenizer that these conversations need. LLAVA_LLAMA_TOKENIZER may name a
folder with a whole one, which must give the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.templates import CONVERSATION_TEMPLATES

FOLDER = Path(__file__).parents[2] / "data" / "prompts"
WHOLE_FOLDER = os.environ.get("LLAVA_LLAMA_TOKENIZER")
GOLDENS: list[dict[str, Any]] = json.loads((FOLDER / "conversations.json").read_text("utf-8"))
BY_NAME = {golden["about"]: golden for golden in GOLDENS}
PART = HFTokenizer(FOLDER, image_token_id=-200)
PICTURE = ImageRef(digest="p", num_tiles=1, side=336, width=640, height=480)
AFTER_PICTURE = [29871, 13, 5618, 338, 445, 29973, 319, 1799, 9047, 13566, 29901]
BEFORE_PICTURE = [3148, 1001, 29901, 29871]


def ids(golden: dict[str, Any], tokenizer: HFTokenizer = PART) -> list[int]:
    """The prompt as the original writes it: one -200 for each picture."""
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES[golden["template"]],
        image_spec=ImageSpec(side=336, tokens_per_tile=1),
        context_length=4096,
    )
    messages = [
        Message(message["role"], tuple(PICTURE if part is None else part for part in message["content"]))
        for message in golden["messages"]
    ]
    return builder.build_chat(messages).token_ids


@pytest.mark.parametrize("name", BY_NAME)
def test_a_conversation_has_the_originals_ids(name: str) -> None:
    assert ids(BY_NAME[name]) == BY_NAME[name]["ids"]


@pytest.mark.parametrize("form", ["Metaspace always", "normalizer"])
def test_the_ids_do_not_depend_on_the_form_of_the_tokenizers_file(form: str, tmp_path: Path) -> None:
    description = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    if form == "normalizer":  # as older files have it
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
    tokenizer = HFTokenizer(tmp_path, image_token_id=-200)
    assert [ids(golden, tokenizer) for golden in GOLDENS] == [golden["ids"] for golden in GOLDENS]


@pytest.mark.skipif(WHOLE_FOLDER is None, reason="LLAVA_LLAMA_TOKENIZER names no folder")
def test_the_whole_llama_tokenizer_gives_the_same_ids() -> None:
    tokenizer = HFTokenizer(Path(WHOLE_FOLDER or ""), image_token_id=-200)
    assert [ids(golden, tokenizer) for golden in GOLDENS] == [golden["ids"] for golden in GOLDENS]


def test_ids_around_a_picture_are_those_known_from_the_original() -> None:
    token_ids = ids(BY_NAME["a picture first"])
    at = token_ids.index(-200)
    assert token_ids[at - 4 : at] == BEFORE_PICTURE
    assert token_ids[at + 1 :] == AFTER_PICTURE


@pytest.mark.parametrize("name", BY_NAME)
def test_special_ids_are_the_templates_own(name: str) -> None:
    golden = BY_NAME[name]
    answers = sum(message["role"] == "assistant" for message in golden["messages"])
    pictures = sum(message["content"].count(None) for message in golden["messages"])
    ends = {"llava_v0": 0, "v0_mmtag": 0, "v1_mmtag": answers + pictures}.get(golden["template"], answers)
    begins = 1 + (answers if golden["template"] == "llava_llama_2" else 0)
    found = ids(golden)
    assert [found.count(number) for number in (0, 1, 2, -200)] == [0, begins, ends, pictures]


def test_no_space_token_stands_between_an_answers_end_and_the_next_question() -> None:
    found = ids(BY_NAME["several turns without a picture"])
    assert found[found.index(2) + 1 :][:3] == BEFORE_PICTURE[:3]
