"""Prompts other than complete chats: continued, raw, embedding and tokenize prompts, and token IDs."""

from __future__ import annotations

import pytest
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.jinja_template import JinjaChatTemplate
from llava_worker.language.prompt_builder import PromptBuilder, PromptError
from llava_worker.language.prompt_formats import PromptTemplate
from llava_worker.language.template_process import TemplateProcess
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.config.image_grid import ImageLayout

from tests.worker.assignments import make_job

BYTES = ByteTokenizer()
QUESTION, PARTIAL_RESPONSE = Message("user", ("Hi?",)), Message("assistant", ("I am",))
VICUNA = CONVERSATION_TEMPLATES["vicuna_v1"]


def builder(
    template: PromptTemplate, *, layout: ImageLayout | None = None, context_length: int = 4096
) -> PromptBuilder:
    layout = layout or ImageLayout(side=8, tokens_per_tile=4)
    return PromptBuilder(
        BYTES, template, expander=TileExpander(layout, BYTES.image_token_id), context_length=context_length
    )


def text(token_ids: list[int]) -> str:
    return bytes(token_id for token_id in token_ids if token_id < 256).decode()


def test_continued_prompt_is_a_prefix_of_the_prompt_with_the_complete_response() -> None:
    for name, template in CONVERSATION_TEMPLATES.items():
        build = builder(template).build
        continued = text(build(make_job(QUESTION, PARTIAL_RESPONSE, form="continued")).token_ids)
        later = text(build(make_job(QUESTION, Message("assistant", ("I am here",)), QUESTION)).token_ids)
        assert later.startswith(continued), name
        assert continued.endswith("I am"), name


def checkpoint_template(source: str, process: TemplateProcess) -> JinjaChatTemplate:
    return JinjaChatTemplate(source, process=process, special_tokens=["<s>", "</s>"], variables={})


def test_continued_prompt_of_a_jinja_template_ends_with_the_partial_response(
    template_process: TemplateProcess,
) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    build = builder(checkpoint_template(source, template_process)).build
    continued = build(make_job(QUESTION, PARTIAL_RESPONSE, form="continued"))
    assert text(continued.token_ids) == "[user]Hi?[assistant]I am"
    assert text(build(make_job(QUESTION)).token_ids) == "[user]Hi?[assistant]"


def test_jinja_template_that_omits_assistant_messages_cannot_continue_them(
    template_process: TemplateProcess,
) -> None:
    template = checkpoint_template("{{ messages[0].content[0].text }}", template_process)
    with pytest.raises(PromptError, match="cannot be continued"):
        builder(template).build(make_job(QUESTION, PARTIAL_RESPONSE, form="continued"))


def test_only_an_assistant_message_can_be_continued() -> None:
    build = builder(VICUNA).build
    with pytest.raises(PromptError, match="no response to continue"):
        build(make_job(QUESTION, form="continued"))
    with pytest.raises(PromptError, match="End the messages with a user message"):
        build(make_job(QUESTION, PARTIAL_RESPONSE))


def test_raw_prompt_is_not_templated() -> None:
    prompt = builder(VICUNA).build(make_job(Message("user", ("</s>USER:",)), form="raw"))
    assert prompt.token_ids == [BYTES.bos_token_id, *b"</s>USER:"]


def test_image_embedding_prompt_consists_of_the_image() -> None:
    image = ImageRef(digest="d", num_tiles=1, side=8, width=9, height=9)
    prompt = builder(VICUNA).build(make_job(Message("user", (image,)), form="raw", task="embed"))
    assert prompt.token_ids == [BYTES.image_token_id] * 4
    assert [(span.start, span.length, span.digest) for span in prompt.images] == [(0, 4, "d")]


def test_text_embedding_prompt_is_not_templated_and_is_limited_by_the_context() -> None:
    build = builder(VICUNA, context_length=8).build
    prompt = build(make_job(Message("user", ("a cat",)), form="raw", task="embed"))
    assert prompt.token_ids == [BYTES.bos_token_id, *b"a cat"]
    for invalid in (
        make_job(Message("user", ("a white cat",)), form="raw", task="embed"),
        make_job(task="embed", prompt_ids=(BYTES.image_token_id,)),
    ):
        with pytest.raises(PromptError):
            build(invalid)


def test_prompt_of_token_ids_is_unchanged_and_must_not_contain_image_tokens() -> None:
    build = builder(VICUNA).build
    assert build(make_job(prompt_ids=(5, 6), form="raw")).token_ids == [5, 6]
    with pytest.raises(PromptError, match="reserved for images"):
        build(make_job(prompt_ids=(5, BYTES.image_token_id), form="raw"))


def test_prompt_that_is_only_tokenized_may_exceed_the_context_length() -> None:
    build = builder(CONVERSATION_TEMPLATES["plain"], context_length=4).build
    with pytest.raises(PromptError) as raised:
        build(make_job(QUESTION))
    assert raised.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert build(make_job(QUESTION, task="tokenize")).token_ids == [BYTES.bos_token_id, *b"Hi?\n"]


def test_image_with_low_detail_has_the_tokens_of_one_tile_and_a_newline() -> None:
    grid = ImageLayout(side=8, tokens_per_tile=4, fit="anyres", grid=((8, 16), (16, 8), (16, 16)))
    build = builder(VICUNA, layout=grid).build

    def message(num_tiles: int) -> Message:
        image = ImageRef(digest="a", num_tiles=num_tiles, side=8, width=30, height=15)
        return Message("user", (image, "Hi?"))

    [low], [high] = build(make_job(message(1))).images, build(make_job(message(3))).images
    assert (low.length, low.width, low.height) == (5, 0, 0)
    assert (high.length > 4, high.width, high.height) == (True, 30, 15)
    with pytest.raises(PromptError, match="different preprocessing configurations"):
        build(make_job(message(2)))
