"""Bad words are converted to the same token sequences as in vLLM."""

from __future__ import annotations

from pathlib import Path

import llava_worker
import pytest
from llava_wire.messages.job import Message
from llava_worker.language.bad_words import bad_word_ids
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.config.image_grid import ImageLayout
from transformers import AutoTokenizer

from tests.worker.assignments import make_job

TINY_FOLDER = Path(llava_worker.__file__).parent / "tiny"
TINY = HFTokenizer(TINY_FOLDER)
BYTES = ByteTokenizer()


def test_a_llama_tokenizer_adds_the_space_itself() -> None:
    reference = AutoTokenizer.from_pretrained(TINY_FOLDER)
    for word in ("red", "red circle", " blue"):
        expected = tuple(reference.encode(word.lstrip(), add_special_tokens=False))
        assert bad_word_ids(TINY, [word]) == (expected,)
        assert b"".join(map(TINY.token_bytes, expected)).decode() == f" {word.lstrip()}"


class MergingTokenizer(ByteTokenizer):
    """A byte tokenizer that, as GPT-2's, has a token for a space and the letter after it."""

    def encode_segment(self, text: str, *, is_first: bool) -> list[int]:
        del is_first
        return [1000 + ord(text[1]), *text[2:].encode()] if text.startswith(" ") else list(text.encode())


def test_a_byte_level_tokenizer_has_a_sequence_with_and_without_a_space() -> None:
    assert bad_word_ids(MergingTokenizer(), ["no", " no"]) == ((110, 111), (1110, 111))


def test_a_space_that_is_a_token_of_its_own_adds_no_sequence() -> None:
    assert bad_word_ids(BYTES, ["no"]) == ((110, 111),)


def test_special_tokens_cannot_be_named() -> None:
    (word,) = bad_word_ids(TINY, ["</s>"])
    assert TINY.special_id("</s>") not in word


@pytest.mark.parametrize("words", [(), ("no", "yes")])
def test_a_prompt_has_the_token_sequences_of_its_job(words: tuple[str, ...]) -> None:
    builder = PromptBuilder(
        BYTES,
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(ImageLayout(side=8, tokens_per_tile=4), BYTES.image_token_id),
        context_length=4096,
    )
    prompt = builder.build(make_job(Message("user", ("Hi?",)), sampling={"bad_words": words}))
    assert prompt.bad_words == tuple(tuple(word.encode()) for word in words)
