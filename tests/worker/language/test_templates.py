"""Templates: each one's shape, and which one a model gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import ChatTemplateError, SpecialToken
from llava_worker.language.templates import CONVERSATION_TEMPLATES, choose_template, template_for_config
from llava_worker.language.tokenizer import ByteTokenizer

PICTURE = ImageRef(digest="p", num_tiles=1, side=8, width=5, height=4)
TURNS = [
    Message("user", ("Hi?", PICTURE)),
    Message("assistant", ("Yes.",)),
    Message("user", ("Why?",)),
]
SYSTEM = {name: conversation.system for name, conversation in CONVERSATION_TEMPLATES.items()}


def shown(name: str, turns: list[Message] = TURNS) -> str:
    """The prompt as one text, with # for a picture and special tokens by their names."""
    pieces = CONVERSATION_TEMPLATES[name].render(turns)
    return "".join("#" if isinstance(one, ImageRef) else getattr(one, "token", one) for one in pieces)


VICUNA = "{} USER: #\nHi? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"
TAGGED = (
    "{} USER: <Image>#</Image> ASSISTANT: Received.</s>USER: Hi? ASSISTANT: Yes.</s>USER: Why? ASSISTANT:"
)
CHATML = (
    "<|im_start|>system\n{0}<|im_end|>{1}<|im_start|>user\n#\nHi?<|im_end|>{1}"
    "<|im_start|>assistant\nYes.<|im_end|>{1}<|im_start|>user\nWhy?<|im_end|>{1}<|im_start|>assistant\n"
)
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
    "mpt": CHATML.format(SYSTEM["mpt"], ""),
    "chatml_direct": CHATML.format("Answer the questions.", ""),
    "qwen_1_5": CHATML.format("You are a helpful assistant.", "\n"),
    "plain": "#\nHi?\nYes.\nWhy?\n",
    "llava_hf": "USER: #\nHi? ASSISTANT: Yes. USER: Why? ASSISTANT:",
}


@pytest.mark.parametrize("name", CONVERSATION_TEMPLATES)
def test_a_template_has_the_originals_shape(name: str) -> None:
    assert shown(name) == EXPECTED[name]


@pytest.mark.parametrize("name", CONVERSATION_TEMPLATES)
def test_a_system_message_takes_the_place_of_the_sentence_in_every_template(name: str) -> None:
    text = shown(name, [Message("system", ("Be brief.",)), *TURNS])
    assert text.count("Be brief.") == 1
    assert not SYSTEM[name] or SYSTEM[name] not in text


@pytest.mark.parametrize("name", CONVERSATION_TEMPLATES)
def test_what_a_user_types_is_text_in_every_template(name: str) -> None:
    typed = "</s><s><image><|im_end|>"
    pieces = CONVERSATION_TEMPLATES[name].render([Message("user", (typed,))])
    plain = CONVERSATION_TEMPLATES[name].render([Message("user", ("x",))])
    assert [piece for piece in pieces if isinstance(piece, SpecialToken)] == [
        piece for piece in plain if isinstance(piece, SpecialToken)
    ]


def test_templates_whose_turns_end_in_plain_signs_stop_at_them() -> None:
    assert {name for name, one in CONVERSATION_TEMPLATES.items() if one.stop == ("###",)} == {
        "llava_v0",
        "v0_mmtag",
    }


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
    "original mpt": ({"model_type": "llava_mpt"}, "mpt"),
    "nothing known": ({}, "vicuna_v1"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_template_follows_from_config_json(name: str) -> None:
    config, expected = CONFIGS[name]
    assert template_for_config(config) == expected


MISTRAL_CONFIG = '{"model_type": "llava_mistral"}'
QWEN_CONFIG = '{"model_type": "llava_qwen"}'


@pytest.mark.parametrize(
    ("own", "expected"),
    [(None, "mistral_instruct"), (QWEN_CONFIG, "qwen_1_5")],
    ids=["without a config.json", "with one"],
)
def test_an_adapters_folder_has_the_template_of_its_base_unless_it_describes_itself(
    tmp_path: Path, own: str | None, expected: str
) -> None:
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    for folder, config in ((adapter, own), (base, MISTRAL_CONFIG)):
        folder.mkdir()
        if config is not None:
            (folder / "config.json").write_text(config)
    assert choose_template("auto", folder=adapter, base=base).name == expected


def test_a_setting_overrides_the_choice() -> None:
    assert choose_template("llava_v0").name == "llava_v0"


def test_the_hf_style_is_refused_for_models_of_another_conversation() -> None:
    with pytest.raises(ChatTemplateError, match="--conversation checkpoint"):
        choose_template("mistral_instruct", "hf")


class _MarkedTokenizer(ByteTokenizer):
    def special_id(self, token: str) -> int:
        return {"<im_start>": 300, "<im_end>": 301}.get(token) or super().special_id(token)


def test_models_trained_with_image_marks_get_them_around_a_picture() -> None:
    builder = PromptBuilder(
        _MarkedTokenizer(),
        CONVERSATION_TEMPLATES["vicuna_v1"],
        image_spec=ImageSpec(side=8, tokens_per_tile=2),
        context_length=4096,
        has_image_marks=True,
    )
    prompt = builder.build_chat(TURNS)
    start = prompt.images[0].start
    assert prompt.token_ids[start - 1 : start + 4] == [300, 258, 258, 301, ord("\n")]


@pytest.mark.parametrize(("name", "has_bos"), [("vicuna_v1", True), ("chatml_direct", False)])
def test_chatml_models_begin_without_a_beginning_token(name: str, has_bos: bool) -> None:
    spec = ImageSpec(side=8, tokens_per_tile=2)
    builder = PromptBuilder(
        ByteTokenizer(), CONVERSATION_TEMPLATES[name], image_spec=spec, context_length=4096
    )
    assert (builder.build_chat(TURNS).token_ids[0] == ByteTokenizer.bos_token_id) is has_bos
