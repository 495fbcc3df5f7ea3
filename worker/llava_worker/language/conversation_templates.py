"""The conversation templates that LLaVA models were trained with, and template selection.

Each template has the same system message, roles and separators as the template of the same name in the
original LLaVA (``llava/conversation.py``). ``qwen_1_5`` and ``llava_llama_3`` are from LLaVA-NeXT, ``phi`` is
from TinyLLaVA, ``phi3_instruct`` from LLaVA++ and ``phi3_chat`` from XTuner.
``llava_hf`` is the chat template of llava-hf's LLaVA-1.5 checkpoints. ``paligemma`` is the prompt of
PaliGemma, whose checkpoints have no chat template. To add a template, add an entry here and, if no existing
format applies, a format in ``prompt_formats``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_worker.language.prompt_formats import (
    ChatTemplateError,
    ConversationTemplate,
    PromptTemplate,
    SpecialToken,
)
from llava_worker.model.config.untrusted_file import read_json_object

if TYPE_CHECKING:
    from llava_worker.language.hf_tokenizer import HFTokenizer
    from llava_worker.language.template_process import TemplateProcess

__all__ = ["CONVERSATION_TEMPLATES", "choose_template", "template_for_config"]

logger = logging.getLogger(__name__)

_END = SpecialToken("</s>")
_IM_END = SpecialToken("<|im_end|>")
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

_ALL = [
    ConversationTemplate(name="vicuna_v1", system=_USER_SYSTEM, separator=" ", end=_END, format="colons"),
    ConversationTemplate(name="llava_v1", system=_HUMAN_SYSTEM, separator=" ", end=_END, format="colons"),
    ConversationTemplate(
        name="v1_mmtag", system=_TAGS_SYSTEM, separator=" ", end=_END, format="colons", has_image_tags=True
    ),
    ConversationTemplate(
        name="llava_v0",
        system=_HUMAN_SYSTEM,
        separator="###",
        end="###",
        format="colons",
        user="Human",
        assistant="Assistant",
        stop=("###",),
    ),
    ConversationTemplate(
        name="v0_mmtag",
        system=_TAGS_SYSTEM,
        separator="###",
        end="###",
        format="colons",
        user="Human",
        assistant="Assistant",
        has_image_tags=True,
        stop=("###",),
    ),
    ConversationTemplate(
        name="llava_llama_2", system=_LLAMA_2_SYSTEM, separator=SpecialToken("<s>"), end=_END, format="inst"
    ),
    ConversationTemplate(name="mistral_instruct", system="", separator="", end=_END, format="inst"),
    ConversationTemplate(
        name="chatml_direct",
        system="Answer the questions.",
        separator="",
        end=_IM_END,
        format="chatml",
        has_bos=False,
    ),
    ConversationTemplate(
        name="qwen_1_5",
        system="You are a helpful assistant.",
        separator="\n",
        end=_IM_END,
        format="chatml",
        has_bos=False,
    ),
    ConversationTemplate(
        name="llava_llama_3",
        system=_LLAMA_2_SYSTEM,
        separator="\n\n",
        end=SpecialToken("<|eot_id|>"),
        format="llama_3",
    ),
    ConversationTemplate(
        name="phi",
        system=_USER_SYSTEM,
        separator=" ",
        end=SpecialToken("<|endoftext|>"),
        format="colons",
        has_bos=False,
    ),
    ConversationTemplate(
        name="phi3_instruct",
        system="You are a helpful AI assistant.",
        separator="\n",
        end=SpecialToken("<|end|>"),
        format="phi_3",
    ),
    ConversationTemplate(
        name="phi3_chat", system="", separator="\n", end=SpecialToken("<|end|>"), format="phi_3"
    ),
    ConversationTemplate(name="plain", system="", separator="\n", end="\n", format="plain"),
    ConversationTemplate(
        name="paligemma", system="", separator="\n", end="\n", format="paligemma", has_bos=False
    ),
    ConversationTemplate(name="llava_hf", system="", separator=" ", end=" ", format="llava_hf"),
]
CONVERSATION_TEMPLATES = {template.name: template for template in _ALL}

_LLAVA_1_5_TEMPLATES = ("vicuna_v1", "llava_v1", "llava_hf")  # the "hf" prompt style requires one of these
# The first word in the type of the decoder determines the template. "llava_phi" is LLaVA++ with Phi-3.
_TEMPLATE_OF_TYPE = (
    ("mistral", "mistral_instruct"),
    ("qwen", "qwen_1_5"),
    ("tiny_llava_phi", "phi"),
    ("llava_phi", "phi3_instruct"),
    ("phi3", "phi3_chat"),
    ("phi", "phi"),
)
# Llama models whose template is identified by the end token.
_TEMPLATE_OF_EOS = {
    7: "chatml_direct",  # <|im_end|> of Nous-Hermes-2-Yi-34B, the decoder of LLaVA-1.6-34B
    32000: "phi3_chat",  # <|endoftext|> of Phi-3, which XTuner converts to Llama
    128001: "llava_llama_3",  # <|end_of_text|>
    128009: "llava_llama_3",  # <|eot_id|>
}


def choose_template(
    conversation: str,
    prompt_style: str = "original",
    *,
    folder: Path | None = None,
    tokenizer: HFTokenizer | None = None,
    base: Path | None = None,
    process: TemplateProcess | None = None,
    image_token: str | None = None,
) -> PromptTemplate:
    """Return the template for the settings ``conversation`` and ``prompt_style``. Raises ChatTemplateError.

    ``folder`` and ``tokenizer`` belong to the model, or are None for the echo model. If ``folder`` contains
    an adapter, ``base`` is the folder of its base model and provides the files that ``folder`` lacks.
    ``process`` renders the checkpoint's template. If it is None, a new process is started. ``image_token`` is
    the text of an image in this template. By default, it is the image token of the tokenizer.
    """
    if conversation == "checkpoint":
        return _checkpoint_template(folder, tokenizer, base, process, image_token)
    if conversation == "auto":
        conversation = template_for_config(_read_config(folder) or _read_config(base))
        logger.info("conversation template selected based on config.json: %s", conversation)
    if prompt_style == "hf":
        if conversation not in _LLAVA_1_5_TEMPLATES:
            raise ChatTemplateError(
                f"The prompt style 'hf' requires LLaVA-1.5, but this model uses the template "
                f"{conversation!r}. To use the model's own chat template, set --conversation checkpoint."
            )
        conversation = "llava_hf"
    return CONVERSATION_TEMPLATES[conversation]


def template_for_config(config: Mapping[str, Any]) -> str:
    """Return the name of the template for a model with this config.json, in either checkpoint layout.

    ViP-LLaVA was trained with llava_v1, and TinyLLaVA with Qwen2 in the same format as with Phi. The default
    is vicuna_v1, which is also returned for LLaVA-v0 and for models based on Llama-2-chat, because their
    configurations are indistinguishable from those of Vicuna models.
    """
    if config.get("model_type") == "vipllava" or config.get("mm_vision_tower") == "clip_4layers_336":
        return "llava_v1"
    text = config.get("text_config")
    if not text or not isinstance(text, dict):
        text = config
    model_type = str(text.get("model_type", "llama"))
    if config.get("model_type") == "tinyllava" and model_type != "llama":
        return "phi"
    for word, name in _TEMPLATE_OF_TYPE:
        if word in model_type:
            return name
    eos = text.get("eos_token_id")
    eos_ids = [each for each in (eos if isinstance(eos, list) else [eos]) if isinstance(each, int)]
    return next((_TEMPLATE_OF_EOS[each] for each in eos_ids if each in _TEMPLATE_OF_EOS), "vicuna_v1")


def _checkpoint_template(
    folder: Path | None,
    tokenizer: HFTokenizer | None,
    base: Path | None,
    process: TemplateProcess | None,
    image_token: str | None,
) -> PromptTemplate:
    from llava_worker.language import chat_template_files as files
    from llava_worker.language.hf_tokenizer import has_tokenizer
    from llava_worker.language.jinja_template import JinjaChatTemplate
    from llava_worker.language.template_process import TemplateProcess

    if folder is None or tokenizer is None:
        raise ChatTemplateError("The echo model has no chat template. Select a built-in template.")
    template_folder = folder if base is None or files.has_chat_template(folder) else base
    tokenizer_folder = folder if base is None or has_tokenizer(folder) else base
    image_tokens = [
        token for token in tokenizer.special_tokens if tokenizer.special_id(token) == tokenizer.image_token_id
    ]
    return JinjaChatTemplate(
        files.read_chat_template(template_folder),
        process=process or TemplateProcess(),
        special_tokens=tokenizer.special_tokens,
        variables=files.read_special_tokens(tokenizer_folder),
        image_token=image_token or (image_tokens[0] if image_tokens else "<image>"),
    )


def _read_config(folder: Path | None) -> dict[str, Any]:
    return {} if folder is None else read_json_object(folder / "config.json")
