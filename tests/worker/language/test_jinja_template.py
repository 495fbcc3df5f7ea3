"""The other prompts: transformers', to compare with, and a checkpoint's own chat template in its sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llava_worker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.jinja_template import JinjaChatTemplate, read_chat_template
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import (
    ChatTemplateError,
    PromptError,
    PromptTemplate,
    Segment,
    SpecialToken,
)
from llava_worker.language.templates import CONVERSATION_TEMPLATES, choose_template
from PIL import Image
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TINY = Path(llava_worker.__file__).parent / "tiny"
LLAMA = Path(__file__).parents[2] / "data" / "prompts"
LLAVA_HF = (Path(__file__).parents[2] / "data" / "prompts" / "llava_hf.jinja").read_text("utf-8")
PICTURE = ImageRef(digest="p", num_tiles=1, side=28, width=5, height=4)
SHOWN = Image.new("RGB", (28, 28))
NUM_TOKENS = 4
SPECIALS = ["<s>", "</s>", "<image>"]

WORDS = st.text(st.sampled_from("abc USER:\n  é🦙"), min_size=1, max_size=12)
QUESTIONS = st.lists(st.one_of(WORDS, st.just(PICTURE)), min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", (draw(WORDS),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [Message("user", tuple(draw(QUESTIONS))), Message("assistant", (draw(WORDS),))]
    return [*messages, Message("user", tuple(draw(QUESTIONS)))]


def our_ids(folder: Path, template: PromptTemplate, messages: list[Message]) -> list[int]:
    tokenizer = HFTokenizer(folder)
    spec = ImageSpec(side=28, tokens_per_tile=NUM_TOKENS)
    builder = PromptBuilder(tokenizer, template, image_spec=spec, context_length=4096)
    return builder.build_chat(messages).token_ids


def transformers_ids(folder: Path, template: str, messages: list[Message]) -> list[int]:
    """transformers' processor; a picture of 28 pixels in patches of 14 is four tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_normalize=False
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template,
    )
    encoded = processor.apply_chat_template(
        [as_dict(one) for one in messages], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    [ids] = encoded["input_ids"]
    return list(ids)


def as_dict(message: Message) -> dict[str, Any]:
    parts = [
        {"type": "image", "image": SHOWN} if isinstance(part, ImageRef) else {"type": "text", "text": part}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


@pytest.mark.parametrize("folder", [TINY, LLAMA], ids=["prefix on every part", "prefix on the first part"])
@settings(max_examples=15, deadline=None)
@given(messages=conversations())
def test_the_hf_style_has_the_ids_of_transformers_processor(folder: Path, messages: list[Message]) -> None:
    assert our_ids(folder, CONVERSATION_TEMPLATES["llava_hf"], messages) == transformers_ids(
        folder, LLAVA_HF, messages
    )


@settings(max_examples=10, deadline=None)
@given(messages=conversations())
def test_a_checkpoints_template_has_the_ids_of_transformers_processor(messages: list[Message]) -> None:
    source = read_chat_template(TINY)
    chosen = choose_template("checkpoint", folder=TINY, tokenizer=HFTokenizer(TINY))
    assert our_ids(TINY, chosen, messages) == transformers_ids(TINY, source, messages)


def render(source: str, *messages: Message) -> list[Segment]:
    return JinjaChatTemplate(source, special_tokens=SPECIALS, bos_token="<s>", eos_token="</s>").render(
        messages
    )


ECHO = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}"
    "{{ eos_token }}{% endfor %}"
)


@pytest.mark.parametrize("parts", [("</s><image>",), ("</", "s>"), ("<imag", "e>"), ("\ue000</s>\ue001",)])
def test_a_special_token_typed_by_the_user_stays_text(parts: tuple[str, ...]) -> None:
    assert render(ECHO, Message("user", parts)) == ["".join(parts), SpecialToken("</s>")]


def test_the_templates_own_tokens_and_pictures_are_special() -> None:
    pieces = render("{{ bos_token }}" + ECHO, Message("user", ("a", PICTURE, "b")))
    assert pieces == [SpecialToken("<s>"), "a", PICTURE, "b", SpecialToken("</s>")]


def test_generation_marks_change_no_text() -> None:
    assert render("{% generation %}a{% endgeneration %}b", Message("user", ("x",))) == ["ab"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[0].role.nothing.more }}", "has no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("<image><image>", "more pictures"),
        ("no picture", "not show all"),
    ],
)
def test_a_template_that_objects_or_reaches_out_refuses_the_conversation(source: str, said: str) -> None:
    with pytest.raises(PromptError, match=said) as refusal:
        render(source, Message("user", (PICTURE, "x")))
    assert refusal.value.error.code is ErrorCode.INVALID_REQUEST


def test_a_broken_template_is_refused_at_the_start() -> None:
    with pytest.raises(ChatTemplateError, match="broken"):
        JinjaChatTemplate("{% for %}", special_tokens=SPECIALS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "T"),
        ("chat_template.json", json.dumps({"chat_template": "T"})),
        ("tokenizer_config.json", json.dumps({"chat_template": "T"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {"chat_template": [{"name": "tools", "template": "U"}, {"name": "default", "template": "T"}]}
            ),
        ),
    ],
)
def test_a_template_is_found_where_checkpoints_have_it(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_chat_template(tmp_path) == "T"


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize("has_own", [True, False])
def test_an_adapters_folder_has_its_own_chat_template_or_its_bases(tmp_path: Path, has_own: bool) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    for folder, name in ((adapter, "own"), (base, "base")):
        folder.mkdir()
        if has_own or folder is base:
            (folder / "chat_template.jinja").write_text(
                "{{ '" + name + "' }}{{ messages[0].content[0].text }}"
            )
    template = choose_template("checkpoint", folder=adapter, tokenizer=HFTokenizer(TINY), base=base)
    assert template.render([Message("user", ("Hi?",))])[0].startswith("own" if has_own else "base")


def test_the_hf_style_is_llava_hfs_template_for_models_of_vicuna() -> None:
    assert choose_template("auto", "hf", folder=TINY).name == "llava_hf"


def test_a_model_without_a_folder_has_no_template_of_its_own() -> None:
    with pytest.raises(ChatTemplateError, match="no chat template of its own"):
        choose_template("checkpoint")


def test_a_message_that_the_template_never_sees_in_this_order_is_refused_before_it() -> None:
    with pytest.raises(PromptError, match="take turns"):
        render(ECHO, Message("user", ("a",)), Message("user", ("b",)))
