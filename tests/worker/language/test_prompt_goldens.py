"""Golden prompts: token IDs computed by tools/prompt_goldens.py with the tokenizers of the original LLaVA.

The data folder contains the part of the Llama tokenizer that these conversations require.
LLAVA_LLAMA_TOKENIZER may be set to a folder with the complete tokenizer, which must yield the same IDs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.model.config.image_grid import ImageLayout

from tests.worker.assignments import make_job
from tests.worker.language.llama_files import ADDED_TOKENS, FILE_FORMATS, FOLDER, FileFormat, write_files

Golden: TypeAlias = dict[str, Any]

COMPLETE_FOLDER = os.environ.get("LLAVA_LLAMA_TOKENIZER")
GOLDENS: list[Golden] = [
    json.loads(line) for line in (FOLDER / "conversations.jsonl").read_text("utf-8").splitlines()
]
IMAGE = ImageRef(digest="p", num_tiles=1, side=336, width=640, height=480)
BEFORE_IMAGE = [3148, 1001, 29901, 29871]
AFTER_IMAGE = [29871, 13, 5618, 338, 445, 29973, 319, 1799, 9047, 13566, 29901]
# The number of prompts, of 68 per template, whose IDs depend on the setting. In the templates without special
# tokens, these are the prompts with <im_start> and <im_end>.
NUM_DEPENDENT = {
    "vicuna_v1": 44,
    "llava_v1": 44,
    "v1_mmtag": 62,
    "llava_v0": 18,
    "v0_mmtag": 19,
    "llava_llama_2": 41,
    "mistral_instruct": 44,
    "chatml_direct": 68,
    "plain": 19,
}
USER_AFTER_END = {True: [2, 3148, 1001], False: [2, 11889, 29901]}


def encode(golden: Golden, tokenizer: HFTokenizer) -> list[int]:
    """Return the token IDs as in the original LLaVA, with a single -200 for each image."""
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES[golden["template"]],
        expander=TileExpander(ImageLayout(side=336, tokens_per_tile=1), tokenizer.image_token_id),
        context_length=4096,
        has_image_marks=golden["vocabulary"] == "marks",
    )
    messages = messages_of(golden, IMAGE)
    form = "continued" if messages[-1].role == "assistant" else "chat"
    return builder.build(make_job(*messages, form=form)).token_ids


def messages_of(golden: Golden, image: ImageRef) -> list[Message]:
    messages = [Message("system", (golden["system"],))] if "system" in golden else []
    for turn in golden["turns"]:
        if isinstance(turn, str):
            messages.append(Message("assistant", (turn,)))
        else:
            messages.append(Message("user", tuple(image if part is None else part for part in turn)))
    return messages


def expected_ids(golden: Golden, *, legacy: bool) -> list[int]:
    name = "ids" if legacy or "modern_ids" not in golden else "modern_ids"
    ids: list[int] = golden[name]
    return ids


def load(folder: Path, file_format: FileFormat, **options: Any) -> HFTokenizer:
    write_files(folder, file_format, **options)
    return HFTokenizer(folder, image_token_id=-200)


def differing(folder: Path, file_format: FileFormat, *, expected_legacy: bool, **options: Any) -> set[int]:
    """Return the positions of the goldens whose IDs differ from those for ``expected_legacy``."""
    differ = set()
    for vocabulary in ADDED_TOKENS:
        subfolder = folder / vocabulary
        subfolder.mkdir()
        tokenizer = load(subfolder, file_format, vocabulary=vocabulary, **options)
        for index, golden in enumerate(GOLDENS):
            ids = expected_ids(golden, legacy=expected_legacy)
            if golden["vocabulary"] == vocabulary and encode(golden, tokenizer) != ids:
                differ.add(index)
    return differ


def depend_on_legacy() -> set[int]:
    return {index for index, golden in enumerate(GOLDENS) if "modern_ids" in golden}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_conversations_have_the_token_ids_of_the_original(
    file_format: FileFormat, legacy: bool, tmp_path: Path
) -> None:
    assert not differing(tmp_path, file_format, legacy=legacy, expected_legacy=legacy)


@pytest.mark.parametrize("file_format", ["normalizer", "model"])
def test_absent_legacy_setting_means_true_as_in_the_original(file_format: FileFormat, tmp_path: Path) -> None:
    assert not differing(tmp_path, file_format, legacy=None, expected_legacy=True)


def test_file_that_transformers_5_wrote_shows_the_setting_that_its_configuration_lacks(
    tmp_path: Path,
) -> None:
    is_yi = {index for index, golden in enumerate(GOLDENS) if golden["vocabulary"] == "yi"}
    formats: dict[FileFormat, bool] = {"first": False, "always": True}
    for file_format, legacy in formats.items():
        (tmp_path / file_format).mkdir()
        differ = differing(tmp_path / file_format, file_format, legacy=None, expected_legacy=legacy)
        assert differ <= is_yi  # a vocabulary without prefixes has the same file for both settings


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_mistral_models_ignore_the_setting_as_the_fast_tokenizer_of_the_original(
    file_format: FileFormat, tmp_path: Path
) -> None:
    options = {"legacy": False, "model_type": "llava_mistral"}
    assert not differing(tmp_path, file_format, expected_legacy=True, **options)


@pytest.mark.parametrize("legacy", [True, False])
def test_ignoring_the_legacy_setting_fails_for_exactly_the_prompts_that_depend_on_it(
    legacy: bool, tmp_path: Path
) -> None:
    differ = differing(tmp_path, "model", legacy=not legacy, expected_legacy=legacy)
    assert differ == depend_on_legacy()
    counts = Counter(GOLDENS[index]["template"] for index in differ)
    assert counts == NUM_DEPENDENT


def test_golden_file_covers_the_templates_and_prompts_of_every_kind() -> None:
    assert len(GOLDENS) >= 600
    assert Counter(golden["template"] for golden in GOLDENS) == dict.fromkeys(NUM_DEPENDENT, 68)
    assert {len(golden["turns"]) for golden in GOLDENS} == set(range(1, 9))
    assert sum(isinstance(golden["turns"][-1], str) for golden in GOLDENS) >= 100


@pytest.mark.skipif(COMPLETE_FOLDER is None, reason="LLAVA_LLAMA_TOKENIZER is not set to a folder")
@pytest.mark.parametrize("legacy", [True, False])
def test_complete_llama_tokenizer_has_the_same_ids(legacy: bool, tmp_path: Path) -> None:
    files = [path for path in Path(COMPLETE_FOLDER or "").iterdir() if path.name.startswith("tokenizer.")]
    for path in files:
        shutil.copy(path, tmp_path)
    config = {"bos_token": "<s>", "eos_token": "</s>", "legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HFTokenizer(tmp_path, image_token_id=-200)
    for golden in GOLDENS:
        if golden["vocabulary"] == "llama":
            assert encode(golden, tokenizer) == expected_ids(golden, legacy=legacy), golden


def test_token_ids_around_an_image_match_the_original(tmp_path: Path) -> None:
    golden = GOLDENS[0]
    assert golden["turns"] == [[None, "What is this?"]]
    for legacy in (True, False):
        token_ids = encode(golden, load(tmp_path, "model", legacy=legacy))
        index = token_ids.index(-200)
        assert token_ids[index - 4 : index] == BEFORE_IMAGE
        assert token_ids[index + 1 :] == AFTER_IMAGE


def test_special_tokens_match_the_template() -> None:
    for golden in GOLDENS:
        turns = golden["turns"]
        is_continued = isinstance(turns[-1], str)
        num_answers = sum(isinstance(turn, str) for turn in turns) - is_continued
        images = [turn.count(None) for turn in turns if isinstance(turn, list)]
        num_tagged = sum(num > 0 for num in images)
        num_eos = {"llava_v0": 0, "v0_mmtag": 0, "v1_mmtag": num_answers + num_tagged, "chatml_direct": 0}
        num_questions = len(images)
        num_bos = {"llava_llama_2": num_questions, "chatml_direct": 0}.get(golden["template"], 1)
        expected = [0, num_bos, num_eos.get(golden["template"], num_answers), sum(images)]
        for legacy in (True, False):
            token_ids = expected_ids(golden, legacy=legacy)
            assert [token_ids.count(token_id) for token_id in (0, 1, 2, -200)] == expected, golden


def test_no_space_token_follows_the_end_of_an_assistant_message() -> None:
    for legacy, expected in USER_AFTER_END.items():
        for golden in GOLDENS:
            token_ids = expected_ids(golden, legacy=legacy)
            if golden["template"] in ("vicuna_v1", "llava_v1") and 2 in token_ids:
                assert token_ids[token_ids.index(2) :][:3] == expected


def test_prefix_precedes_only_tokens_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    golden: Golden = {"template": "vicuna_v1", "vocabulary": "marks", "turns": [[None, "What is this?"]]}

    def after_image(**options: Any) -> list[int]:
        token_ids = encode(golden, load(tmp_path, "model", vocabulary="marks", **options))
        return token_ids[token_ids.index(-200) + 1 :][:3]

    assert after_image(legacy=True) == [32002, 29871, 13]
    assert after_image(legacy=False) == [29871, 32002, 13]
    names = json.dumps({"additional_special_tokens": ["<im_start>", {"content": "<im_end>"}]})
    (tmp_path / "special_tokens_map.json").write_text(names)
    assert after_image(legacy=False) == [32002, 13, 5618]
