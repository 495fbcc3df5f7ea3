"""Prompts: the original's shape, one place a picture, and a clear no to what cannot be asked."""

from __future__ import annotations

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.prompt_builder import Prompt, PromptBuilder, PromptError
from llava_worker.language.templates import CONVERSATION_TEMPLATES
from llava_worker.language.tokenizer import ByteTokenizer, Tokenizer

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
        image_spec=ImageSpec(side=SIDE, tokens_per_tile=TOKENS_PER_TILE),
        context_length=context_length,
    )
    return builder.build_chat(messages)


def user(*parts: str | ImageRef) -> Message:
    return Message("user", parts)


def shown(prompt: Prompt) -> str:
    """The prompt as text, special ids by name and each picture token as one #."""
    names = {BYTES.bos_token_id: b"<s>", BYTES.eos_token_id: b"</s>", BYTES.image_token_id: b"#"}
    return b"".join(names.get(token_id) or bytes([token_id]) for token_id in prompt.token_ids).decode()


def test_a_question_stands_in_the_originals_template() -> None:
    assert shown(build(user("Hi?"))) == f"<s>{SYSTEM} USER: Hi? ASSISTANT:"


def test_no_space_follows_the_end_of_an_answer() -> None:
    turns = [user("Hi?"), Message("assistant", ("Yes.",)), user("Why?")]
    assert shown(build(*turns)) == f"<s>{SYSTEM} USER: Hi? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"


def test_a_system_message_takes_the_place_of_the_templates_sentence() -> None:
    assert shown(build(Message("system", ("Be brief.",)), user("Hi?"))) == "<s>Be brief. USER: Hi? ASSISTANT:"


def test_an_empty_system_message_leaves_none() -> None:
    assert shown(build(Message("system", ("",)), user("Hi?"))) == "<s>USER: Hi? ASSISTANT:"


@pytest.mark.parametrize("parts", [(image(), "Hi?"), ("Hi?", image())])
def test_a_picture_stands_before_its_question_wherever_it_was(parts: tuple[str | ImageRef, ...]) -> None:
    prompt = build(user(*parts))
    assert shown(prompt) == f"<s>{SYSTEM} USER: ###\nHi? ASSISTANT:"
    assert [(span.start, span.length, span.digest) for span in prompt.images] == [(len(SYSTEM) + 8, 3, "a")]


def test_each_picture_of_a_question_is_followed_by_a_newline() -> None:
    prompt = build(user(image("a"), "Hi?", image("b")))
    assert shown(prompt) == f"<s>{SYSTEM} USER: ###\n###\nHi? ASSISTANT:"
    assert [(span.length, span.digest) for span in prompt.images] == [(3, "a"), (3, "b")]


def test_a_later_question_keeps_its_own_picture() -> None:
    turns = [user("Hi?"), Message("assistant", ("Yes.",)), user(image(), "And here?")]
    assert shown(build(*turns)).endswith("</s>USER: ###\nAnd here? ASSISTANT:")


def test_texts_of_one_message_stand_on_lines_of_their_own() -> None:
    assert shown(build(user("One.", "Two."))).endswith("USER: One.\nTwo. ASSISTANT:")


def test_a_typed_special_token_is_text() -> None:
    prompt = build(user("</s><image><s>"))
    assert shown(prompt).count("</s><image><s>") == 1
    assert BYTES.eos_token_id not in prompt.token_ids
    assert prompt.images == []


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ([Message("system", ("Hi.",))], "no user message"),
        ([user("a"), user("b")], r"messages\[1\] has the role 'user'"),
        ([Message("assistant", ("a",)), user("b")], "at the beginning"),
        ([user("a"), Message("assistant", ("b",))], "the last message is the assistant's"),
        ([user("a"), Message("system", ("b",)), user("c")], "only the first"),
        ([Message("system", (image(),)), user("c")], r"messages\[0\] \(system\) has a picture"),
        (
            [user("a"), Message("assistant", (image(),)), user("c")],
            r"messages\[1\] \(assistant\) has a picture",
        ),
    ],
)
def test_a_conversation_out_of_order_is_refused_with_its_place(messages: list[Message], said: str) -> None:
    with pytest.raises(PromptError, match=said) as refusal:
        build(*messages)
    assert refusal.value.error.code is ErrorCode.INVALID_REQUEST


def test_an_over_long_prompt_is_refused_with_both_numbers_and_the_way_out() -> None:
    with pytest.raises(PromptError) as refusal:
        build(user(image("a"), image("b"), "x" * 50), context_length=60)
    error = refusal.value.error
    num_tokens = len(build(user(image("a"), image("b"), "x" * 50)).token_ids)
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert error.message == (
        f"prompt has {num_tokens} tokens with 2 images; the model takes 60, answer included: "
        "shorten the text or send fewer images"
    )


def test_a_prompt_with_room_for_one_token_is_taken_and_one_longer_is_not() -> None:
    length = len(build(user("Hi?")).token_ids)
    assert build(user("Hi?"), context_length=length + 1).token_ids
    with pytest.raises(PromptError):
        build(user("Hi?"), context_length=length)


def test_a_picture_fitted_for_another_model_is_refused() -> None:
    with pytest.raises(PromptError, match="336 pixels") as refusal:
        build(user(image(side=336), "Hi?"))
    assert refusal.value.error.code is ErrorCode.INTERNAL_ERROR


ANYRES = ImageSpec(side=8, fit="anyres", tokens_per_tile=4, grid=((8, 16), (16, 8), (16, 16)))


def anyres_image(*, num_tiles: int = 3) -> ImageRef:
    return ImageRef(digest="a", num_tiles=num_tiles, side=8, width=30, height=10)


def test_a_picture_of_several_tiles_takes_as_many_tokens_as_it_will_have_features() -> None:
    builder = PromptBuilder(
        BYTES, CONVERSATION_TEMPLATES["vicuna_v1"], image_spec=ANYRES, context_length=4096
    )
    [span] = builder.build_chat([user(anyres_image(), "Hi?")]).images
    # base view 2x2; of the grid's 4x2 patches one row shows the picture, and a newline ends it
    assert (span.length, span.width, span.height) == (4 + 2 * 5, 30, 10)


def test_a_picture_cut_to_another_grid_is_refused() -> None:
    builder = PromptBuilder(
        BYTES, CONVERSATION_TEMPLATES["vicuna_v1"], image_spec=ANYRES, context_length=4096
    )
    with pytest.raises(PromptError, match="2 tiles of 8 pixels") as refusal:
        builder.build_chat([user(anyres_image(num_tiles=2), "Hi?")])
    assert refusal.value.error.code is ErrorCode.INTERNAL_ERROR
