"""Chat prompts: the original LLaVA's format, image tokens and rejected messages."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import Prompt, PromptBuilder, PromptError
from llava_worker.language.tokenizer import ByteTokenizer, Tokenizer
from llava_worker.model.config.image_grid import ImageLayout

from tests.worker.assignments import make_job

SIDE = 8
TOKENS_PER_TILE = 3
BYTES = ByteTokenizer()
SYSTEM = CONVERSATION_TEMPLATES["vicuna_v1"].system


def image(digest: str = "a", *, side: int = SIDE) -> ImageRef:
    return ImageRef(digest=digest, num_tiles=1, side=side, width=5, height=4)


def build(*messages: Message, context_length: int = 4096, tokenizer: Tokenizer = BYTES) -> Prompt:
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(
            ImageLayout(side=SIDE, tokens_per_tile=TOKENS_PER_TILE), tokenizer.image_token_id
        ),
        context_length=context_length,
    )
    return builder.build_chat(messages)


def user(*parts: str | ImageRef) -> Message:
    return Message("user", parts)


def as_text(prompt: Prompt) -> str:
    """Return the prompt as text, with special tokens shown by name and each image token shown as "#"."""
    names = {BYTES.bos_token_id: b"<s>", BYTES.eos_token_id: b"</s>", BYTES.image_token_id: b"#"}
    return b"".join(names.get(token_id) or bytes([token_id]) for token_id in prompt.token_ids).decode()


def test_prompt_follows_the_original_template() -> None:
    assert as_text(build(user("Hi?"))) == f"<s>{SYSTEM} USER: Hi? ASSISTANT:"


def test_no_space_follows_the_end_of_an_assistant_message() -> None:
    turns = [user("Hi?"), Message("assistant", ("Yes.",)), user("Why?")]
    assert as_text(build(*turns)) == f"<s>{SYSTEM} USER: Hi? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"


def test_system_message_replaces_the_default() -> None:
    assert (
        as_text(build(Message("system", ("Be brief.",)), user("Hi?"))) == "<s>Be brief. USER: Hi? ASSISTANT:"
    )


def test_empty_system_message_removes_the_default() -> None:
    assert as_text(build(Message("system", ("",)), user("Hi?"))) == "<s>USER: Hi? ASSISTANT:"


def test_image_precedes_the_text_of_its_message() -> None:
    for message in (user(image(), "Hi?"), user("Hi?", image())):
        prompt = build(message)
        assert as_text(prompt) == f"<s>{SYSTEM} USER: ###\nHi? ASSISTANT:"
        [span] = prompt.images
        assert (span.start, span.length, span.digest) == (len(SYSTEM) + 8, 3, "a")


def test_each_image_is_followed_by_a_newline() -> None:
    prompt = build(user(image("a"), "Hi?", image("b")))
    assert as_text(prompt) == f"<s>{SYSTEM} USER: ###\n###\nHi? ASSISTANT:"
    assert [(span.length, span.digest) for span in prompt.images] == [(3, "a"), (3, "b")]


def test_image_of_a_later_message_stays_in_that_message() -> None:
    turns = [user("Hi?"), Message("assistant", ("Yes.",)), user(image(), "And here?")]
    assert as_text(build(*turns)).endswith("</s>USER: ###\nAnd here? ASSISTANT:")


def test_texts_of_one_message_are_joined_by_newlines() -> None:
    assert as_text(build(user("One.", "Two."))).endswith("USER: One.\nTwo. ASSISTANT:")


def test_an_image_has_the_features_of_all_its_tiles_even_if_the_grid_is_reduced() -> None:
    layout = ImageLayout(
        side=SIDE, tokens_per_tile=16, fit="anyres", grid=((4 * SIDE, 4 * SIDE),), max_tiles=2
    )
    expander = TileExpander(layout, BYTES.image_token_id)
    whole = ImageRef(digest="a", num_tiles=17, side=SIDE, width=64, height=64)
    low_detail = ImageRef(digest="b", num_tiles=1, side=SIDE, width=64, height=64)

    grid, single = expander.expand([whole, low_detail])

    assert (grid.num_features, single.num_features) == (17 * 16, 16)
    assert len(grid.token_ids) < 3 * 17
    builder = PromptBuilder(
        BYTES, CONVERSATION_TEMPLATES["vicuna_v1"], expander=expander, context_length=4096
    )
    [span] = builder.build_chat([user(whole)]).images
    assert (span.num_encoded, span.length) == (17 * 16, len(grid.token_ids))


def test_special_token_in_user_text_is_plain_text() -> None:
    prompt = build(user("</s><image><s>"))
    assert as_text(prompt).count("</s><image><s>") == 1
    assert BYTES.eos_token_id not in prompt.token_ids
    assert prompt.images == []


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "The list of messages is empty"),
        ([Message("system", ("Hi.",))], "do not contain a user message"),
        ([user("a"), user("b")], r"messages\[1\] has the role 'user'"),
        ([Message("assistant", ("a",)), user("b")], r"messages\[0\] has the role 'assistant'"),
        ([user("a"), Message("assistant", ("b",))], "The last message is an assistant message"),
        ([user("a"), Message("system", ("b",)), user("c")], "Only the first"),
        (
            [Message("system", (image(),)), user("c")],
            r"messages\[0\] has the role 'system' and contains an image",
        ),
        (
            [user("a"), Message("assistant", (image(),)), user("c")],
            r"messages\[1\] has the role 'assistant' and contains an image",
        ),
    ],
)
def test_invalid_messages_are_rejected_with_their_index(messages: list[Message], error: str) -> None:
    with pytest.raises(PromptError, match=error) as raised:
        build(*messages)
    assert raised.value.error.code is ErrorCode.INVALID_REQUEST


def test_too_long_prompt_is_rejected_with_its_length_the_limit_and_a_remedy() -> None:
    with pytest.raises(PromptError) as raised:
        build(user(image("a"), image("b"), "x" * 50), context_length=60)
    error = raised.value.error
    num_tokens = len(build(user(image("a"), image("b"), "x" * 50)).token_ids)
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert error.message == (
        f"The prompt has {num_tokens} tokens, including 2 images. The model's context length is 60 tokens "
        "for prompt and output. Shorten the text or send fewer images."
    )


class CountingTokenizer(ByteTokenizer):
    """A tokenizer that counts its calls."""

    num_calls = 0

    def encode(self, text: str, *, is_first: bool = True) -> list[int]:
        self.num_calls += 1
        return super().encode(text, is_first=is_first)


def build_job(tokenizer: Tokenizer, text: str, **fields: Any) -> Prompt:
    builder = PromptBuilder(
        tokenizer,
        CONVERSATION_TEMPLATES["plain"],
        expander=TileExpander(
            ImageLayout(side=SIDE, tokens_per_tile=TOKENS_PER_TILE), tokenizer.image_token_id
        ),
        context_length=60,
    )
    return builder.build(make_job(user(text), form="raw", **fields))


def test_text_that_is_too_long_for_any_tokens_is_rejected_without_tokenizing_it() -> None:
    tokenizer = CountingTokenizer()
    assert build_job(tokenizer, "x" * 58).token_ids
    assert tokenizer.num_calls == 1
    with pytest.raises(PromptError) as raised:
        build_job(tokenizer, "x" * 60)
    assert tokenizer.num_calls == 1
    assert raised.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert raised.value.error.message == (
        "The prompt has at least 60 tokens. The model's context length is 60 tokens for prompt and output. "
        "Shorten the text."
    )


@pytest.mark.parametrize("fields", [{"truncate_prompt_tokens": 5}, {"task": "tokenize"}])
def test_long_text_is_tokenized_if_the_context_length_does_not_limit_it(fields: dict[str, Any]) -> None:
    assert build_job(BYTES, "x" * 600, **fields).token_ids


def test_long_text_is_tokenized_if_one_token_can_represent_it() -> None:
    tokenizer = CountingTokenizer()
    tokenizer.max_token_bytes = None
    with pytest.raises(PromptError, match="has 61 tokens"):
        build_job(tokenizer, "x" * 60)
    assert tokenizer.num_calls == 1


def test_prompt_must_leave_room_for_one_token() -> None:
    length = len(build(user("Hi?")).token_ids)
    assert build(user("Hi?"), context_length=length + 1).token_ids
    with pytest.raises(PromptError):
        build(user("Hi?"), context_length=length)


def test_image_preprocessed_for_another_model_is_rejected() -> None:
    with pytest.raises(PromptError, match="336 pixels") as raised:
        build(user(image(side=336), "Hi?"))
    assert raised.value.error.code is ErrorCode.INTERNAL_ERROR


ANYRES = ImageLayout(side=8, fit="anyres", tokens_per_tile=4, grid=((8, 16), (16, 8), (16, 16)))


def anyres_image(*, num_tiles: int = 3) -> ImageRef:
    return ImageRef(digest="a", num_tiles=num_tiles, side=8, width=30, height=10)


def test_image_of_several_tiles_has_one_token_per_feature() -> None:
    builder = PromptBuilder(
        BYTES,
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(ANYRES, BYTES.image_token_id),
        context_length=4096,
    )
    [span] = builder.build_chat([user(anyres_image(), "Hi?")]).images
    # A base view of 2x2 tokens, plus two grid rows that show the image, each with 4 tokens and a newline.
    assert (span.length, span.width, span.height) == (4 + 2 * 5, 30, 10)


def test_image_with_another_number_of_tiles_is_rejected() -> None:
    builder = PromptBuilder(
        BYTES,
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(ANYRES, BYTES.image_token_id),
        context_length=4096,
    )
    with pytest.raises(PromptError, match="2 tiles of 8 pixels") as raised:
        builder.build_chat([user(anyres_image(num_tiles=2), "Hi?")])
    assert raised.value.error.code is ErrorCode.INTERNAL_ERROR
