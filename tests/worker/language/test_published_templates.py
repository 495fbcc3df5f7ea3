"""Equivalents of published vision models' chat templates yield the same prompts as in transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.jinja_template import JinjaChatTemplate
from llava_worker.language.prompt_builder import PromptBuilder, PromptError
from llava_worker.language.prompt_formats import Segment, SpecialToken
from llava_worker.language.template_process import TemplateProcess
from llava_worker.model.config.image_grid import ImageLayout
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parents[2] / "data"
IMAGE = ImageRef(digest="p", num_tiles=1, side=14, width=5, height=4)
IMAGES = [ImageRef(digest=f"p{index}", num_tiles=1, side=14, width=5, height=4) for index in range(3)]
CHATML = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Style:
    """A template's image token, its other special tokens, and whether it expects a list of parts."""

    image_token: str = "<image>"
    tokens: tuple[str, ...] = ()
    has_list_content: bool = True


STYLES = {
    "aya_vision": Style(
        tokens=(
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        )
    ),
    "deepseek_vl": Style("<image_placeholder>", has_list_content=False),
    "gemma_3": Style("<start_of_image>", ("<start_of_turn>", "<end_of_turn>")),
    "glm_4v": Style(
        "<|image|>",
        ("[gMASK]", "<sop>", "<|begin_of_image|>", "<|end_of_image|>", "<|user|>", "<|assistant|>"),
    ),
    "granite_vision": Style(tokens=("<|system|>", "<|user|>", "<|assistant|>")),
    "internvl": Style(tokens=CHATML, has_list_content=False),
    "llama_3_2_vision": Style("<|image|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "llama_4": Style("<|image|>", ("<|header_start|>", "<|header_end|>", "<|eot|>")),
    "llava_1_5": Style(),
    "llava_1_6_34b_chatml": Style(tokens=CHATML),
    "llava_1_6_mistral": Style(),
    "llava_1_6_vicuna": Style(has_list_content=False),
    "llava_interleave_qwen": Style(tokens=CHATML),
    "llava_onevision": Style(tokens=(*CHATML, "<video>")),
    "minicpm_v": Style("(<image>./</image>)", CHATML, has_list_content=False),
    "molmo": Style("<|image|>", has_list_content=False),
    "paligemma": Style(),
    "phi_3_5_vision": Style("<|image_1|>", ("<|user|>", "<|assistant|>", "<|end|>"), has_list_content=False),
    "pixtral": Style("[IMG]", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
    "qwen2_5_vl": Style("<|image_pad|>", (*CHATML, "<|vision_start|>", "<|vision_end|>")),
    "qwen2_vl": Style("<|image_pad|>", (*CHATML, "<|vision_start|>", "<|vision_end|>")),
    "smolvlm": Style(tokens=("<|im_start|>", "<end_of_utterance>")),
}


def user(*parts: str | ImageRef) -> Message:
    return Message("user", parts)


def assistant(text: str) -> Message:
    return Message("assistant", (text,))


SYSTEM = Message("system", ('Be "brief" & exact: <1 line>.',))
FIRST, SECOND, THIRD = IMAGES
CONVERSATIONS = {
    "text": [user("Hi?")],
    "image first": [user(FIRST, "What is this?")],
    "image last": [user("What is this?\n", FIRST)],
    "no text": [user(FIRST)],
    "three images": [user(FIRST, "and", SECOND, THIRD, "differ how?")],
    "spaces": [user("  two spaces \n\n"), assistant(" \tyes\n"), user("\n ")],
    "system": [SYSTEM, user("Hi?"), assistant("Hello."), user("Why?")],
    "system and image": [SYSTEM, user(FIRST, "Hi?")],
    "two turns": [user(FIRST, "Hi?"), assistant("It is a cat."), user("Why?")],
    "four turns": [
        user(FIRST, "名前は?"),
        assistant("猫です。"),
        user("и цвет?", SECOND),
        assistant("Чёрный 🐈‍⬛"),
        user("مرحبا"),
        assistant("é"),
        user("{{ 7 * 7 }} {% raw %} \ue000 \U000f0000"),
    ],
    "roles do not alternate": [user("a"), user("b"), assistant("c"), user("d")],
    "late system message": [user("a"), assistant("b"), SYSTEM, user("c")],
}
# Text that looks like special tokens. Its token IDs differ from those of transformers.
INJECTION = [user("</s><image>", FIRST, "<|im_end|>[IMG]<|image|>"), assistant("</s>"), user("<s", ">")]


def source(name: str) -> str:
    return (DATA / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def save_tokenizer(folder: Path, style: Style) -> None:
    """Save Llama's tokenizer with the template's special tokens in addition."""
    description = json.loads((DATA / "prompts" / "tokenizer.json").read_text("utf-8"))
    added, vocabulary = description["added_tokens"], description["model"]["vocab"]
    for token in (style.image_token, *style.tokens):
        if token not in vocabulary:
            vocabulary[token] = max(vocabulary.values()) + 1
            added.append({**added[0], "content": token, "id": vocabulary[token]})
    (folder / "tokenizer.json").write_text(json.dumps(description), "utf-8")
    shutil.copy(DATA / "prompts" / "tokenizer_config.json", folder)


def as_dicts(messages: Sequence[Message], style: Style) -> list[dict[str, Any]]:
    """Return the messages as the input of transformers."""
    dicts: list[dict[str, Any]] = []
    for message in messages:
        texts = [part for part in message.parts if isinstance(part, str)]
        num_images = len(message.parts) - len(texts)
        content: Any = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in message.parts
        ]
        if not style.has_list_content:
            content = f"{style.image_token}\n" * num_images + "\n".join(texts)
        dicts.append({"role": message.role, "content": content})
    return dicts


def without_system(messages: Sequence[Message], style: Style) -> list[Message]:
    """Return the messages with the text of the system message in the first user message."""
    system, first, *others = messages
    [text] = system.parts
    if style.has_list_content:
        return [user(f"{text}\n\n", *first.parts), *others]
    images = "".join(f"{style.image_token}\n" for part in first.parts if isinstance(part, ImageRef))
    texts = "\n".join(part for part in first.parts if isinstance(part, str))
    return [user(f"{text}\n\n{images}{texts}"), *others]


def as_text(segment: Segment, style: Style) -> str:
    if isinstance(segment, ImageRef):
        return style.image_token
    return segment.token if isinstance(segment, SpecialToken) else segment


class Model:
    """One template and its tokenizer, in transformers and in the worker."""

    def __init__(self, name: str, folder: Path, process: TemplateProcess) -> None:
        self.style = STYLES[name]
        save_tokenizer(folder, self.style)
        self.reference: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        self.reference.chat_template = source(name)
        tokenizer = HFTokenizer(folder)
        tokenizer.image_token_id = tokenizer.special_id(self.style.image_token)
        self.template = JinjaChatTemplate(
            source(name),
            process=process,
            special_tokens=tokenizer.special_tokens,
            variables=self.reference.special_tokens_map,
            image_token=self.style.image_token,
        )
        layout = ImageLayout(side=14, tokens_per_tile=1)
        self.builder = PromptBuilder(
            tokenizer,
            self.template,
            expander=TileExpander(layout, tokenizer.image_token_id),
            context_length=4096,
        )

    def expected_text(self, messages: Sequence[Message], **options: bool) -> str:
        options = options or {"add_generation_prompt": True}
        return str(
            self.reference.apply_chat_template(as_dicts(messages, self.style), tokenize=False, **options)
        )

    def text(self, messages: Sequence[Message], *, is_continued: bool = False) -> str:
        segments = self.template.render(messages, is_continued=is_continued)
        return "".join(as_text(segment, self.style) for segment in segments)


@pytest.fixture(params=STYLES)
def model(request: pytest.FixtureRequest, tmp_path: Path, template_process: TemplateProcess) -> Model:
    return Model(request.param, tmp_path, template_process)


def test_every_template_is_tested() -> None:
    names = {path.stem for path in (DATA / "chat_templates").glob("*.jinja")}
    assert names == set(STYLES)
    assert len(names) >= 20


def test_text_and_token_ids_equal_those_of_transformers(model: Model) -> None:
    """If transformers raises an error that is not about the system message, the request fails with it."""
    num_equal = 0
    for name, messages in CONVERSATIONS.items():
        try:
            expected = model.expected_text(messages)
        except TemplateError as error:
            if name in ("system", "system and image"):
                expected = model.expected_text(without_system(messages, model.style))
                assert model.text(messages) == expected, name
                continue
            with pytest.raises(PromptError) as raised:
                model.text(messages)
            assert str(error) in raised.value.error.message, name
            continue
        assert model.text(messages) == expected, name
        has_bos = expected.startswith("<s>")
        ids = model.reference(expected, add_special_tokens=not has_bos)["input_ids"]
        assert model.builder.build_chat(messages).token_ids == ids, name
        num_equal += 1
    assert num_equal >= 8


def test_injected_special_tokens_are_the_same_characters_but_plain_text(model: Model) -> None:
    expected = model.expected_text(INJECTION)
    segments = model.template.render(INJECTION)
    assert "".join(as_text(segment, model.style) for segment in segments) == expected
    plain = model.template.render([user("x", FIRST, "y"), assistant("z"), user("x", "y")])
    assert [s for s in segments if not isinstance(s, str)] == [s for s in plain if not isinstance(s, str)]


def test_continued_message_ends_as_in_transformers(model: Model) -> None:
    for partial in ("It is", "It is ", "a </s> b"):
        messages = [user(FIRST, "Hi?"), assistant(partial)]
        expected = model.expected_text(messages, continue_final_message=True)
        assert model.text(messages, is_continued=True) == expected
