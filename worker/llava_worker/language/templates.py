"""The conversation templates that LLaVA models were trained with, and which one a model gets unasked.

Sentences, roles and separators are those of ``llava/conversation.py`` of the original LLaVA under the same
names; ``qwen_1_5`` is LLaVA-NeXT's, ``llava_hf`` the chat template of llava-hf's LLaVA-1.5 checkpoints.
A new template is one entry here, and one shape in ``conversation`` if it has a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_worker.language.prompt_formats import Conversation, Special

__all__ = ["CONVERSATIONS", "choose_conversation"]

_END = Special("</s>")
_IM_END = Special("<|im_end|>")
_USER_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HUMAN_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_TAGS_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)

_ALL = [
    Conversation(name="vicuna_v1", system=_USER_SYSTEM, separator=" ", end=_END, shape="colons"),
    Conversation(name="llava_v1", system=_HUMAN_SYSTEM, separator=" ", end=_END, shape="colons"),
    Conversation(
        name="v1_mmtag", system=_TAGS_SYSTEM, separator=" ", end=_END, shape="colons", has_image_tags=True
    ),
    Conversation(
        name="llava_v0",
        system=_HUMAN_SYSTEM,
        separator="###",
        end="###",
        shape="colons",
        user="Human",
        assistant="Assistant",
        stop=("###",),
    ),
    Conversation(
        name="v0_mmtag",
        system=_TAGS_SYSTEM,
        separator="###",
        end="###",
        shape="colons",
        user="Human",
        assistant="Assistant",
        has_image_tags=True,
        stop=("###",),
    ),
    Conversation(
        name="llava_llama_2", system=_LLAMA_2_SYSTEM, separator=Special("<s>"), end=_END, shape="inst"
    ),
    Conversation(name="mistral_instruct", system="", separator="", end=_END, shape="inst"),
    Conversation(name="mpt", system=_MPT_SYSTEM, separator="", end=_IM_END, shape="chatml", has_bos=False),
    Conversation(
        name="chatml_direct",
        system="Answer the questions.",
        separator="",
        end=_IM_END,
        shape="chatml",
        has_bos=False,
    ),
    Conversation(
        name="qwen_1_5",
        system="You are a helpful assistant.",
        separator="\n",
        end=_IM_END,
        shape="chatml",
        has_bos=False,
    ),
    Conversation(name="plain", system="", separator="\n", end="\n", shape="plain"),
    Conversation(name="llava_hf", system="", separator=" ", end=" ", shape="llava_hf"),
]
CONVERSATIONS = {conversation.name: conversation for conversation in _ALL}

_YI_EOS = 7  # <|im_end|> of Nous-Hermes-2-Yi-34B, the decoder of LLaVA-1.6-34B


def choose_conversation(config: Mapping[str, Any]) -> str:
    """The template for a model by the values of its config.json, of either layout.

    What they can't tell is vicuna_v1: LLaVA-v0 and models on Llama-2-chat have Vicuna's configuration.
    """
    text = config.get("text_config") or config
    kind = str(text.get("model_type", "llama"))
    for word, name in (("mistral", "mistral_instruct"), ("mpt", "mpt"), ("qwen", "qwen_1_5")):
        if word in kind:
            return name
    return "chatml_direct" if text.get("eos_token_id") == _YI_EOS else "vicuna_v1"
