"""``truncate_prompt_tokens`` keeps the end of a prompt and never a part of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llava_worker
import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import Prompt, PromptBuilder, PromptError
from llava_worker.language.tokenizer import ByteTokenizer, Tokenizer
from llava_worker.model.config.image_grid import ImageLayout
from transformers import AutoTokenizer

from tests.worker.assignments import make_job

BYTES = ByteTokenizer()
BOS, IMAGE = BYTES.bos_token_id, BYTES.image_token_id
TINY_FOLDER = Path(llava_worker.__file__).parent / "tiny"
TOKENS_PER_TILE = 4
CONTEXT_LENGTH = 200


def build(
    *parts: str | ImageRef,
    limit: int | None,
    form: str = "chat",
    tokenizer: Tokenizer = BYTES,
    **fields: Any,
) -> Prompt:
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(ImageLayout(side=8, tokens_per_tile=TOKENS_PER_TILE), tokenizer.image_token_id),
        context_length=CONTEXT_LENGTH,
    )
    messages = [Message("system", ("",)), Message("user", parts)]
    return builder.build(
        make_job(*messages[form == "raw" :], form=form, truncate_prompt_tokens=limit, **fields)
    )


def image(digest: str) -> ImageRef:
    return ImageRef(digest=digest, num_tiles=1, side=8, width=5, height=4)


def test_the_last_tokens_of_a_chat_are_kept_after_the_bos_token() -> None:
    whole = build("How are you?", limit=None).token_ids
    for limit in range(1, len(whole) + 3):
        expected = whole if limit >= len(whole) else [BOS, *whole[len(whole) - limit + 1 :]]
        assert build("How are you?", limit=limit).token_ids == expected


def test_a_text_prompt_is_truncated_as_in_transformers() -> None:
    reference = AutoTokenizer.from_pretrained(TINY_FOLDER, truncation_side="left")
    text = "a red circle and a blue square on a white background"
    for limit in (2, 5, 9, 500):
        prompt = build(text, limit=limit, form="raw", tokenizer=HFTokenizer(TINY_FOLDER))
        assert prompt.token_ids == reference(text, truncation=True, max_length=limit)["input_ids"]


def test_exactly_the_last_token_ids_of_a_token_prompt_are_kept() -> None:
    prompt = build(limit=3, form="raw", prompt_ids=(BOS, 5, 6, 7, 8))
    assert prompt.token_ids == [6, 7, 8]


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(50, 150), (1, 199), (None, 199), (CONTEXT_LENGTH, 199), (5000, 199)]
)
def test_minus_one_leaves_room_for_the_output(max_tokens: int | None, expected: int) -> None:
    sampling = {"max_tokens": max_tokens}
    prompt = build("a" * 500, limit=-1, sampling=sampling)
    assert len(prompt.token_ids) == expected
    assert prompt.token_ids[0] == BOS
    assert bytes(prompt.token_ids[-12:]) == b"a ASSISTANT:"
    assert len(build("a", limit=-1, sampling=sampling).token_ids) == len("^USER: a ASSISTANT:")


def test_a_limit_does_not_extend_the_context() -> None:
    with pytest.raises(PromptError) as caught:
        build("a" * 500, limit=400)
    assert caught.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_whole_images_are_dropped_with_the_text_and_the_others_move() -> None:
    parts = (image("first"), "one", image("second"), "two")
    whole = build(*parts, limit=None)
    first, second = whole.images
    num_tokens = len(whole.token_ids)
    kept = build(*parts, limit=num_tokens - first.end + 1)
    assert [each.digest for each in kept.images] == ["second"]
    assert kept.token_ids == [BOS, *whole.token_ids[first.end :]]
    (moved,) = kept.images
    assert kept.token_ids[moved.start : moved.end] == [IMAGE] * TOKENS_PER_TILE
    assert build(*parts, limit=num_tokens - second.end + 1).images == []
    assert len(build(*parts, limit=num_tokens - first.start + 1).images) == 2


def test_a_limit_inside_an_image_is_rejected_with_the_limits_that_are_possible() -> None:
    parts = ("one", image("first"), "two")
    whole = build(*parts, limit=None)
    (span,) = whole.images
    num_tokens = len(whole.token_ids)
    limits = range(num_tokens - span.end + 2, num_tokens - span.start + 1)
    assert len(limits) == TOKENS_PER_TILE - 1
    possible = f"Keep at least {limits.stop} .* at most {limits.start - 1} "
    for limit in limits:
        with pytest.raises(PromptError, match=possible) as caught:
            build(*parts, limit=limit)
        assert caught.value.error.param == "truncate_prompt_tokens"
    for limit in (limits.start - 1, limits.stop):
        build(*parts, limit=limit)


def test_an_embedded_image_cannot_be_truncated() -> None:
    assert len(build(image("one"), limit=-1, form="raw", task="embed").token_ids) == TOKENS_PER_TILE
    with pytest.raises(PromptError, match="image 1"):
        build(image("one"), limit=2, form="raw", task="embed")
