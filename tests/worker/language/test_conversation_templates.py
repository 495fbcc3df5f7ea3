"""Conversation templates: their formats, and which one is selected for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import (
    CONVERSATION_TEMPLATES,
    choose_template,
    template_for_config,
)
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import ChatTemplateError, Segment, SpecialToken
from llava_worker.language.tokenizer import ByteTokenizer
from llava_worker.model.config.image_grid import ImageLayout

IMAGE = ImageRef(digest="p", num_tiles=1, side=8, width=5, height=4)
TURNS = [
    Message("user", ("Hi?", IMAGE)),
    Message("assistant", ("Yes.",)),
    Message("user", ("Why?",)),
]
SYSTEM = {name: template.system for name, template in CONVERSATION_TEMPLATES.items()}


def as_text(segment: Segment) -> str:
    """Return the segment as text. An image becomes "#", and a special token becomes its name."""
    if isinstance(segment, ImageRef):
        return "#"
    return segment.token if isinstance(segment, SpecialToken) else segment


def render(name: str, messages: list[Message] = TURNS) -> str:
    return "".join(map(as_text, CONVERSATION_TEMPLATES[name].render(messages)))


VICUNA = "{} USER: #\nHi? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"
TAGGED = (
    "{} USER: <Image>#</Image> ASSISTANT: Received.</s>USER: Hi? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"
)
CHATML = (
    "<|im_start|>system\n{0}<|im_end|>{1}<|im_start|>user\n#\nHi?<|im_end|>{1}"
    "<|im_start|>assistant\nYes.<|im_end|>{1}<|im_start|>user\nWhy?<|im_end|>{1}<|im_start|>assistant\n"
)
LLAMA_3 = (
    "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n#\nHi?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
PHI_3 = "<|user|>\n#\nHi?<|end|>\n<|assistant|>\nYes.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n"
EXPECTED = {
    "vicuna_v1": VICUNA.format(SYSTEM["vicuna_v1"]),
    "llava_v1": VICUNA.format(SYSTEM["llava_v1"]),
    "v1_mmtag": TAGGED.format(SYSTEM["v1_mmtag"]),
    "llava_v0": SYSTEM["llava_v0"] + "###Human: #\nHi?###Assistant: Yes.###Human: Why?###Assistant:",
    "v0_mmtag": SYSTEM["v0_mmtag"] + "###Human: <Image>#</Image>###Assistant: Received.###Human: Hi?###"
    "Assistant: Yes.###Human: Why?###Assistant:",
    "llava_llama_2": f"[INST] <<SYS>>\n{SYSTEM['llava_llama_2']}\n<</SYS>>\n\n#\nHi? [/INST] Yes. </s>"
    "<s>[INST] Why? [/INST]",
    "mistral_instruct": "[INST] #\nHi? [/INST] Yes. </s>[INST] Why? [/INST]",
    "chatml_direct": CHATML.format("Answer the questions.", ""),
    "qwen_1_5": CHATML.format("You are a helpful assistant.", "\n"),
    "llava_llama_3": LLAMA_3.format(SYSTEM["llava_llama_3"]),
    "phi": VICUNA.format(SYSTEM["vicuna_v1"]).replace("</s>", "<|endoftext|>"),
    "phi3_instruct": f"<|system|>\n{SYSTEM['phi3_instruct']}<|end|>\n{PHI_3}",
    "phi3_chat": PHI_3,
    "plain": "#\nHi?\nYes.\nWhy?\n",
    "paligemma": "#<bos>Hi?\nYes.\nWhy?\n",
    "llava_hf": "USER: #\nHi? ASSISTANT: Yes. USER: Why? ASSISTANT:",
}


def test_templates_have_the_format_of_the_original() -> None:
    assert {name: render(name) for name in CONVERSATION_TEMPLATES} == EXPECTED


def test_spaces_around_texts_are_removed_only_for_llama_3() -> None:
    """Llama 3's own chat template, which the original uses, trims the content, including the image."""
    plain, with_image = (
        render("llava_llama_3", [Message("system", ("",)), Message("user", parts)])
        for parts in ((" Hi? \n",), (IMAGE, " Hi? \n"))
    )
    end = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert plain == f"<|start_header_id|>user<|end_header_id|>\n\nHi?{end}"
    assert with_image == f"<|start_header_id|>user<|end_header_id|>\n\n#\n Hi?{end}"
    assert " Hi? \n" in render("qwen_1_5", [Message("user", (" Hi? \n",))])


def test_system_message_replaces_the_default_of_every_template() -> None:
    for name, system in SYSTEM.items():
        text = render(name, [Message("system", ("Be brief.",)), *TURNS])
        assert text.count("Be brief.") == 1, name
        assert not system or system not in text, name


def test_special_tokens_in_user_text_are_plain_text_in_every_template() -> None:
    def special_tokens(name: str, text: str) -> list[Segment]:
        segments = CONVERSATION_TEMPLATES[name].render([Message("user", (text,))])
        return [segment for segment in segments if isinstance(segment, SpecialToken)]

    for name in CONVERSATION_TEMPLATES:
        assert special_tokens(name, "</s><s><image><|im_end|>") == special_tokens(name, "x"), name


def test_templates_with_plain_text_separators_stop_at_them() -> None:
    stopping = {name for name, template in CONVERSATION_TEMPLATES.items() if template.stop == ("###",)}
    assert stopping == {"llava_v0", "v0_mmtag"}


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "llava-hf 1.5": ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "vicuna_v1"),
    "llava-hf 1.6 mistral": (
        {"model_type": "llava_next", "text_config": {"model_type": "mistral"}},
        "mistral_instruct",
    ),
    "llava-hf 1.6 34b": (
        {"model_type": "llava_next", "text_config": {"model_type": "llama", "eos_token_id": 7}},
        "chatml_direct",
    ),
    "llava-hf interleave": ({"model_type": "llava", "text_config": {"model_type": "qwen2"}}, "qwen_1_5"),
    "original 1.5": ({"model_type": "llava", "eos_token_id": 2}, "vicuna_v1"),
    "original 1.5, later name": ({"model_type": "llava_llama", "eos_token_id": 2}, "vicuna_v1"),
    "original 1.6 mistral": ({"model_type": "llava_mistral"}, "mistral_instruct"),
    "original 1.6 34b": ({"model_type": "llava_llama", "eos_token_id": 7}, "chatml_direct"),
    "llava-hf onevision": (
        {"model_type": "llava_onevision", "text_config": {"model_type": "qwen2"}},
        "qwen_1_5",
    ),
    "original onevision": ({"model_type": "llava_qwen", "image_aspect_ratio": "anyres_max_9"}, "qwen_1_5"),
    "llava-hf vip": ({"model_type": "vipllava", "text_config": {"model_type": "llama"}}, "llava_v1"),
    "original vip": ({"model_type": "llava_llama", "mm_vision_tower": "clip_4layers_336"}, "llava_v1"),
    "llava-hf llama 3": (
        {"model_type": "llava_next", "text_config": {"model_type": "llama", "eos_token_id": 128001}},
        "llava_llama_3",
    ),
    "original llama 3": ({"model_type": "llava_llama", "eos_token_id": [128009]}, "llava_llama_3"),
    "llava-hf qwen1.5": ({"model_type": "llava_next", "text_config": {"model_type": "qwen2"}}, "qwen_1_5"),
    "tinyllava phi": ({"model_type": "tinyllava", "text_config": {"model_type": "phi"}}, "phi"),
    "tinyllava qwen2": ({"model_type": "tinyllava", "text_config": {"model_type": "qwen2"}}, "phi"),
    "tinyllava llama": ({"model_type": "tinyllava", "text_config": {"model_type": "llama"}}, "vicuna_v1"),
    "tinyllava before its factory": ({"model_type": "tiny_llava_phi"}, "phi"),
    "llava++ phi-3": ({"model_type": "llava_phi", "eos_token_id": 32000}, "phi3_instruct"),
    "llava-hf phi-3": ({"model_type": "llava", "text_config": {"model_type": "phi3"}}, "phi3_chat"),
    "xtuner phi-3": (
        {"model_type": "llava", "text_config": {"model_type": "llama", "eos_token_id": 32000}},
        "phi3_chat",
    ),
    "nothing known": ({}, "vicuna_v1"),
}


def test_template_is_selected_by_config_json() -> None:
    for name, (config, expected) in CONFIGS.items():
        assert template_for_config(config) == expected, name


MISTRAL_CONFIG = '{"model_type": "llava_mistral"}'
QWEN_CONFIG = '{"model_type": "llava_qwen"}'


def test_adapter_uses_the_template_of_its_base_unless_it_has_a_config_json(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    base.mkdir()
    (base / "config.json").write_text(MISTRAL_CONFIG)
    assert choose_template("auto", folder=adapter, base=base).name == "mistral_instruct"
    (adapter / "config.json").write_text(QWEN_CONFIG)
    assert choose_template("auto", folder=adapter, base=base).name == "qwen_1_5"


def test_configured_template_overrides_the_automatic_selection() -> None:
    assert choose_template("llava_v0").name == "llava_v0"


def test_hf_style_is_rejected_for_models_with_another_template() -> None:
    with pytest.raises(ChatTemplateError, match="--conversation checkpoint"):
        choose_template("mistral_instruct", "hf")


class ImageMarkTokenizer(ByteTokenizer):
    def special_id(self, token: str) -> int:
        return {"<im_start>": 300, "<im_end>": 301}.get(token) or super().special_id(token)


def test_images_are_enclosed_in_marks_if_the_model_was_trained_with_them() -> None:
    builder = PromptBuilder(
        ImageMarkTokenizer(),
        CONVERSATION_TEMPLATES["vicuna_v1"],
        expander=TileExpander(ImageLayout(side=8, tokens_per_tile=2), ByteTokenizer.image_token_id),
        context_length=4096,
        has_image_marks=True,
    )
    prompt = builder.build_chat(TURNS)
    start = prompt.images[0].start
    assert prompt.token_ids[start - 1 : start + 4] == [300, 258, 258, 301, ord("\n")]


def test_prompts_of_chatml_models_have_no_bos() -> None:
    layout = ImageLayout(side=8, tokens_per_tile=2)
    for name, has_bos in (("vicuna_v1", True), ("chatml_direct", False)):
        template = CONVERSATION_TEMPLATES[name]
        builder = PromptBuilder(
            ByteTokenizer(),
            template,
            expander=TileExpander(layout, ByteTokenizer.image_token_id),
            context_length=4096,
        )
        assert (builder.build_chat(TURNS).token_ids[0] == ByteTokenizer.bos_token_id) is has_bos
