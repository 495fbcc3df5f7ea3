"""Prompts that are no question: an answer to go on with, a text as it is, tokens, and those only counted."""

from __future__ import annotations

from typing import Any

import pytest
from llava_wire.messages.assignment import Assignment
from llava_wire.messages.event import ErrorCode, FinishReason
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Job, Message
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.job_output import JobOutput
from llava_worker.language.jinja_template import JinjaChatTemplate
from llava_worker.language.prompt_builder import PromptBuilder, PromptError
from llava_worker.language.prompt_formats import PromptTemplate
from llava_worker.language.templates import CONVERSATION_TEMPLATES
from llava_worker.language.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
QUESTION, BEGUN = Message("user", ("Hi?",)), Message("assistant", ("I am",))


def builder(
    template: PromptTemplate, *, spec: ImageSpec | None = None, context_length: int = 4096
) -> PromptBuilder:
    spec = spec or ImageSpec(side=8, tokens_per_tile=4)
    return PromptBuilder(BYTES, template, image_spec=spec, context_length=context_length)


def job(*messages: Message, **fields: Any) -> Job:
    sampling = SamplingParams(seed=1, stop=fields.pop("stop", ()))
    return Job(job_id="job", model="m", tenant="t", messages=messages, sampling=sampling, cost=1.0, **fields)


def text(token_ids: list[int]) -> str:
    return bytes(token_id for token_id in token_ids if token_id < 256).decode()


@pytest.mark.parametrize("name", sorted(CONVERSATION_TEMPLATES))
def test_a_continued_answer_stands_where_a_whole_one_would(name: str) -> None:
    """The next question's prompt holds the whole answer: what is continued is the beginning of it."""
    build = builder(CONVERSATION_TEMPLATES[name]).build
    continued = text(build(job(QUESTION, BEGUN, form="continued")).token_ids)
    later = text(build(job(QUESTION, Message("assistant", ("I am here",)), QUESTION)).token_ids)
    assert later.startswith(continued)
    assert continued.endswith("I am")


def test_a_continued_answer_is_cut_out_of_the_models_own_template() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    build = builder(JinjaChatTemplate(source, special_tokens=["<s>", "</s>"])).build
    assert text(build(job(QUESTION, BEGUN, form="continued")).token_ids) == "[user]Hi?[assistant]I am"
    assert text(build(job(QUESTION)).token_ids) == "[user]Hi?[assistant]"


def test_a_template_that_hides_answers_continues_none() -> None:
    template = JinjaChatTemplate("{{ messages[0].content[0].text }}", special_tokens=["<s>"])
    with pytest.raises(PromptError, match="none of them can be continued"):
        builder(template).build(job(QUESTION, BEGUN, form="continued"))


def test_only_an_answer_can_be_continued() -> None:
    build = builder(CONVERSATION_TEMPLATES["vicuna_v1"]).build
    with pytest.raises(PromptError, match="nothing to continue"):
        build(job(QUESTION, form="continued"))
    with pytest.raises(PromptError, match="end with the user message"):
        build(job(QUESTION, BEGUN))


def test_a_raw_prompt_stands_as_it_is() -> None:
    prompt = builder(CONVERSATION_TEMPLATES["vicuna_v1"]).build(
        job(Message("user", ("</s>USER:",)), form="raw")
    )
    assert prompt.token_ids == [BYTES.bos_token_id, *b"</s>USER:"]


def test_a_picture_to_be_embedded_is_all_of_its_prompt() -> None:
    picture = ImageRef(digest="d", num_tiles=1, side=8, width=9, height=9)
    asked = job(Message("user", (picture,)), form="raw", task="embed")
    prompt = builder(CONVERSATION_TEMPLATES["vicuna_v1"]).build(asked)
    assert prompt.token_ids == [BYTES.image_token_id] * 4
    assert [(span.start, span.length, span.digest) for span in prompt.images] == [(0, 4, "d")]


def test_a_text_to_be_embedded_is_taken_as_it_is_and_may_be_too_long() -> None:
    build = builder(CONVERSATION_TEMPLATES["vicuna_v1"], context_length=8).build
    asked = job(Message("user", ("a cat",)), form="raw", task="embed")
    assert build(asked).token_ids == [BYTES.bos_token_id, *b"a cat"]
    for refused in (
        job(Message("user", ("a white cat",)), form="raw", task="embed"),
        job(task="embed", prompt_ids=(BYTES.image_token_id,)),
    ):
        with pytest.raises(PromptError):
            build(refused)


def test_a_prompt_of_tokens_is_taken_as_it_is_but_for_pictures() -> None:
    build = builder(CONVERSATION_TEMPLATES["vicuna_v1"]).build
    assert build(job(prompt_ids=(5, 6), form="raw")).token_ids == [5, 6]
    with pytest.raises(PromptError, match="stands for a picture"):
        build(job(prompt_ids=(5, BYTES.image_token_id), form="raw"))


def test_a_prompt_that_is_only_counted_may_be_longer_than_the_context() -> None:
    build = builder(CONVERSATION_TEMPLATES["plain"], context_length=4).build
    with pytest.raises(PromptError) as caught:
        build(job(QUESTION))
    assert caught.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert text(build(job(QUESTION, task="tokenize")).token_ids) == "Hi?\n"


GRID = ImageSpec(side=8, tokens_per_tile=4, fit="anyres", grid=((8, 16), (16, 8), (16, 16)))


def test_a_picture_with_low_detail_takes_its_base_views_tokens() -> None:
    build = builder(CONVERSATION_TEMPLATES["vicuna_v1"], spec=GRID).build

    def picture(num_tiles: int) -> Message:
        return Message(
            "user", (ImageRef(digest="a", num_tiles=num_tiles, side=8, width=30, height=15), "Hi?")
        )

    [low], [high] = build(job(picture(1))).images, build(job(picture(3))).images
    assert (low.length, low.width, low.height) == (4, 0, 0)
    assert (high.length > 4, high.width, high.height) == (True, 30, 15)
    with pytest.raises(PromptError, match="disagree about its pictures"):
        build(job(picture(2)))


def told(asked: Job) -> Any:
    answer = JobOutput(Assignment(asked, "fence", (), "", {}), BYTES, stop=("USER",))
    answer.start(builder(CONVERSATION_TEMPLATES["plain"]).build(asked))
    return answer.next_event()


def test_a_counted_prompt_is_its_tokens_and_nothing_else() -> None:
    event = told(job(QUESTION, task="tokenize"))
    assert event.token_ids == (BYTES.bos_token_id, *b"Hi?\n")
    assert (event.text, event.final.reason, event.final.num_prompt_tokens) == ("", FinishReason.STOP, 5)


def test_tokens_become_their_text_whatever_ends_an_answer() -> None:
    event = told(job(prompt_ids=(*"ä USER".encode(), BYTES.eos_token_id), task="detokenize", stop=(" ",)))
    assert (event.text, event.token_ids, event.final.reason) == ("ä USER", (), FinishReason.STOP)


def test_an_answer_says_its_prompts_length_once_and_early() -> None:
    asked = job(QUESTION)
    answer = JobOutput(Assignment(asked, "fence", (), "", {}), BYTES)
    answer.start(builder(CONVERSATION_TEMPLATES["plain"]).build(asked))
    assert answer.next_event() is None
    answer._token_ids = [1]
    first = answer.next_event()
    answer._token_ids = [2]
    second = answer.next_event()
    assert first is not None and second is not None
    assert (first.num_prompt_tokens, second.num_prompt_tokens) == (5, 0)
