"""Checkpoints' chat templates yield the same prompts as in transformers, and user text remains plain text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_worker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_wire.messages.event import ErrorCode
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.chat_template_files import read_chat_template
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES, choose_template
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.jinja_template import JinjaChatTemplate
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import (
    ChatTemplateError,
    PromptError,
    PromptTemplate,
    Segment,
    SpecialToken,
)
from llava_worker.language.template_process import TemplateProcess
from llava_worker.model.config.image_grid import ImageLayout
from PIL import Image
from transformers import AutoTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.worker.language.llama_files import FILE_FORMATS, FileFormat, write_files

TINY = Path(llava_worker.__file__).parent / "tiny"
LLAMA = Path(__file__).parents[2] / "data" / "prompts"
LLAVA_HF = (LLAMA / "llava_hf.jinja").read_text("utf-8")
IMAGE = ImageRef(digest="p", num_tiles=1, side=28, width=5, height=4)
NUM_IMAGE_TOKENS = 4
SPECIAL_TOKENS = ["<s>", "</s>", "<image>"]

TEXTS = st.text(st.sampled_from("abc USER:\n  é🦙"), min_size=1, max_size=12)
USER_PARTS = st.lists(st.one_of(TEXTS, st.just(IMAGE)), min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", (draw(TEXTS),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages += [Message("user", tuple(draw(USER_PARTS))), Message("assistant", (draw(TEXTS),))]
    return [*messages, Message("user", tuple(draw(USER_PARTS)))]


def encode(folder: Path, template: PromptTemplate, messages: list[Message]) -> list[int]:
    layout = ImageLayout(side=28, tokens_per_tile=NUM_IMAGE_TOKENS)
    tokenizer = HFTokenizer(folder)
    builder = PromptBuilder(
        tokenizer, template, expander=TileExpander(layout, tokenizer.image_token_id), context_length=4096
    )
    return builder.build_chat(messages).token_ids


def encode_with_transformers(folder: Path, template: str, messages: list[Message]) -> list[int]:
    """Encode with transformers' processor. A 28 x 28 image has four 14 x 14 patches and thus four tokens."""
    processor: Any = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_normalize=False
        ),
        AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template,
    )
    encoded = processor.apply_chat_template(
        [as_dict(message) for message in messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    [ids] = encoded["input_ids"]
    return list(ids)


def as_dict(message: Message) -> dict[str, Any]:
    image = {"type": "image", "image": Image.new("RGB", (28, 28))}
    parts = [
        image if isinstance(part, ImageRef) else {"type": "text", "text": part} for part in message.parts
    ]
    return {"role": message.role, "content": parts}


@pytest.mark.parametrize("folder", [TINY, LLAMA], ids=["prefix on every part", "prefix on the first part"])
@settings(max_examples=15, deadline=None)
@given(messages=conversations())
def test_llava_hf_template_yields_the_token_ids_of_transformers(
    folder: Path, messages: list[Message]
) -> None:
    token_ids = encode(folder, CONVERSATION_TEMPLATES["llava_hf"], messages)
    assert token_ids == encode_with_transformers(folder, LLAVA_HF, messages)


MULTI_TURN = [
    Message("system", (" Be brief.",)),
    Message("user", (IMAGE, "What is this?")),
    Message("assistant", (" A cat.",)),
    Message("user", ("  USER:\n", IMAGE, "a")),
    Message("assistant", ("",)),
    Message("user", ("Hi?",)),
]
WITH_END_TOKENS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
    "{{ '</s>' if m.role == 'assistant' }}{% endfor %}ASSISTANT:"
)


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_prompts_equal_those_of_transformers_for_every_tokenizer_file_and_legacy_setting(
    template_process: TemplateProcess, file_format: FileFormat, legacy: bool | None, tmp_path: Path
) -> None:
    """For LLaVA models, transformers 5 loads tokenizer.json and ignores the setting.

    Its class LlamaTokenizer reads the setting. This class is the reference for tokenizer.model. It loads an
    equivalent tokenizer.json, because it can load tokenizer.model only if sentencepiece is installed.
    """
    end_tokens = JinjaChatTemplate(
        WITH_END_TOKENS, process=template_process, special_tokens=SPECIAL_TOKENS, variables={}
    )
    folder, reference = tmp_path / "folder", tmp_path / "reference"
    for path in (folder, reference):
        path.mkdir()
    write_files(folder, file_format, legacy=legacy, model_type="llava")
    is_model = file_format == "model"
    write_files(
        reference,
        "first" if is_model else file_format,
        legacy=legacy,
        model_type=None if is_model else "llava",
    )
    for template, source in ((CONVERSATION_TEMPLATES["llava_hf"], LLAVA_HF), (end_tokens, WITH_END_TOKENS)):
        assert encode(folder, template, MULTI_TURN) == encode_with_transformers(reference, source, MULTI_TURN)


@settings(max_examples=10, deadline=None)
@given(messages=conversations())
def test_checkpoint_template_yields_the_token_ids_of_transformers(
    template_process: TemplateProcess, messages: list[Message]
) -> None:
    template = choose_template(
        "checkpoint", folder=TINY, tokenizer=HFTokenizer(TINY), process=template_process
    )
    token_ids = encode(TINY, template, messages)
    assert token_ids == encode_with_transformers(TINY, read_chat_template(TINY), messages)


Render = Callable[..., list[Segment]]


@pytest.fixture
def render(template_process: TemplateProcess) -> Render:
    def render(source: str, *messages: Message, is_continued: bool = False) -> list[Segment]:
        template = JinjaChatTemplate(
            source,
            process=template_process,
            special_tokens=SPECIAL_TOKENS,
            variables={"bos_token": "<s>", "eos_token": "</s>"},
        )
        return template.render(messages, is_continued=is_continued)

    return render


ECHO = (
    "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}"
    "{{ eos_token }}{% endfor %}"
)
STRING_ECHO = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
MANY_RARE_CHARACTERS = "".join(map(chr, range(0x20000, 0x21000)))


@pytest.mark.parametrize("source", [ECHO, STRING_ECHO], ids=["list content", "string content"])
def test_special_token_in_user_text_is_plain_text(render: Render, source: str) -> None:
    for parts in (
        ("</s><image>",),
        ("</", "s>"),
        ("<imag", "e>"),
        ("\ue000</s>\ue001",),
        ("\U00020000/s>",),
        (MANY_RARE_CHARACTERS + "</s>",),
    ):
        text = ("" if source is ECHO else "\n").join(parts)
        assert render(source, Message("user", parts)) == [text, SpecialToken("</s>")]


def test_removed_characters_do_not_turn_user_text_into_a_special_token(render: Render) -> None:
    source = "{{ messages[0].content | replace('-', '') | trim | upper | lower }}"
    assert render(source, Message("user", (" <-/s> ",))) == ["</s>"]


def test_user_text_is_restored_if_the_template_prints_a_list_of_messages(render: Render) -> None:
    assert render("{{ messages }}", Message("user", ("1 < 2",))) == ["[{'role': 'user', 'content': '1 < 2'}]"]


def test_text_with_all_placeholders_is_rejected(render: Render) -> None:
    text = "".join(map(chr, range(0x20000, 0x2A6D7)))
    with pytest.raises(PromptError, match="nearly all of the 42711 CJK ideographs"):
        render(ECHO, Message("user", (text,)))
    assert render(STRING_ECHO, Message("user", (f"<{text[1:]}",)))[0] == f"<{text[1:]}"


def test_special_tokens_and_images_of_the_template_are_segments(render: Render) -> None:
    segments = render("{{ bos_token }}" + ECHO, Message("user", ("a", IMAGE, "b")))
    assert segments == [SpecialToken("<s>"), "a", IMAGE, "b", SpecialToken("</s>")]


def test_images_precede_the_text_of_string_content(render: Render) -> None:
    """Images and texts are on separate lines, as in vLLM."""
    end = SpecialToken("</s>")
    for parts, expected in (
        (("a", IMAGE, "b", IMAGE), [IMAGE, "\n", IMAGE, "\na\nb", end]),
        ((IMAGE,), [IMAGE, "\n", end]),
        (("a",), ["a", end]),
    ):
        assert render(STRING_ECHO, Message("user", parts)) == expected


def test_template_that_raises_or_is_unsafe_rejects_the_messages(render: Render) -> None:
    for source, error in (
        ("{{ raise_exception('only one turn') }}", "rejected the messages: only one turn"),
        ("{{ messages[0].role.nothing.more }}", "has no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("<image><image>", "more images"),
        ("no image", "not insert all"),
    ):
        with pytest.raises(PromptError, match=error) as raised:
            render(source, Message("user", (IMAGE, "x")))
        assert raised.value.error.code is ErrorCode.INVALID_REQUEST


def test_error_of_the_template_contains_the_original_text(render: Render) -> None:
    with pytest.raises(PromptError, match="rejected the messages: <b> is too long"):
        render("{{ raise_exception(messages[0].content + ' is too long') }}", Message("user", ("<b>",)))


def test_invalid_template_is_rejected_at_startup(render: Render) -> None:
    with pytest.raises(ChatTemplateError, match="chat template is invalid: Expected an expression"):
        render("{% for %}")


def test_template_decides_in_which_order_roles_may_occur(render: Render) -> None:
    end = SpecialToken("</s>")
    assert render(ECHO, Message("user", ("a",)), Message("user", ("b",))) == ["a", end, "b", end]
    with pytest.raises(PromptError, match="Only user messages may contain images"):
        render(ECHO, Message("assistant", (IMAGE,)), Message("user", ("b",)))
    with pytest.raises(PromptError, match="End the messages with a user message"):
        render(ECHO, Message("user", ("a",)), Message("assistant", ("b",)))


def test_adapter_uses_the_chat_template_of_its_base_unless_it_has_its_own(
    tmp_path: Path, template_process: TemplateProcess
) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    messages = [Message("user", ("Hi?",))]

    def render_adapter() -> list[Segment]:
        template = choose_template(
            "checkpoint", folder=adapter, tokenizer=HFTokenizer(TINY), base=base, process=template_process
        )
        return template.render(messages)

    adapter.mkdir()
    base.mkdir()
    (base / "chat_template.jinja").write_text("base {{ messages[0].content[0].text }}")
    assert render_adapter() == ["base Hi?"]
    (adapter / "chat_template.jinja").write_text("own {{ messages[0].content[0].text }}")
    assert render_adapter() == ["own Hi?"]


def test_hf_style_selects_the_llava_hf_template_for_vicuna_models() -> None:
    assert choose_template("auto", "hf", folder=TINY).name == "llava_hf"


def test_model_without_a_folder_has_no_chat_template() -> None:
    with pytest.raises(ChatTemplateError, match="The echo model has no chat template"):
        choose_template("checkpoint")
