"""Which template a model's prompts follow: what the settings say, else what its config.json tells."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llava_worker.language.prompt_formats import Template
from llava_worker.language.templates import CONVERSATIONS, choose_conversation
from llava_worker.language.tokenizer import TokenizerError

if TYPE_CHECKING:
    from llava_worker.language.hf_tokenizer import FileTokenizer
    from llava_worker.settings import Settings

__all__ = ["choose_template"]

_LIKE_LLAVA_HF = ("vicuna_v1", "llava_v1", "llava_hf")  # models of which llava-hf made checkpoints with it

logger = logging.getLogger(__name__)


def choose_template(
    settings: Settings,
    folder: Path | None = None,
    tokenizer: FileTokenizer | None = None,
    *,
    base: Path | None = None,
) -> Template:
    """``folder`` and ``tokenizer`` are the model's; None for a model without. Raises TokenizerError.

    ``base`` is the model that an adapter's folder adapts: what the folder does not say, it does.
    """
    if settings.conversation == "checkpoint":
        return _checkpoints_own(folder, tokenizer, base)
    name = settings.conversation
    if name == "auto":
        name = choose_conversation(_read_config(folder) or _read_config(base))
        logger.info("conversation auto: %s, by the model's config.json", name)
    if settings.prompt_style == "hf":
        if name not in _LIKE_LLAVA_HF:
            raise TokenizerError(
                f"prompt_style hf is for LLaVA-1.5 and this model's conversation is {name}: "
                "take --conversation checkpoint, the model's own chat template"
            )
        name = "llava_hf"
    return CONVERSATIONS[name]


def _checkpoints_own(folder: Path | None, tokenizer: FileTokenizer | None, base: Path | None) -> Template:
    from llava_worker.language.jinja_template import (
        ChatTemplate,
        ChatTemplateError,
        has_chat_template,
        read_chat_template,
    )

    if folder is None or tokenizer is None:
        raise TokenizerError("this model has no folder and so no chat template of its own")
    source = base if base is not None and not has_chat_template(folder) else folder
    try:
        return ChatTemplate(
            read_chat_template(source),
            special_tokens=tokenizer.special_tokens,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
        )
    except ChatTemplateError as error:
        raise TokenizerError(str(error)) from error


def _read_config(folder: Path | None) -> dict[str, object]:
    path = folder / "config.json" if folder else None
    return dict(json.loads(path.read_text("utf-8"))) if path and path.is_file() else {}
