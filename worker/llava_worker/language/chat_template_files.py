"""Reads a checkpoint's chat template, and the special tokens that it can use as variables.

Both are read from the same files as in transformers 5, with the same precedence
(``processing_utils.py`` and ``tokenization_utils_base.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_worker.language.prompt_formats import ChatTemplateError

__all__ = ["has_chat_template", "read_chat_template", "read_special_tokens"]


def has_chat_template(folder: Path) -> bool:
    return _find_source(folder) is not None


def read_chat_template(folder: Path) -> str:
    """Return the template's source. Raises ChatTemplateError.

    The template of the processor takes precedence over the template of the tokenizer. In a list of named
    templates, the template is the one named "default".
    """
    source = _find_source(folder)
    if source is None:
        raise ChatTemplateError(
            f"No chat template exists in {folder}. Select a built-in template with --conversation."
        )
    return source


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens by variable name, for example "bos_token".

    Older checkpoints, whose tokenizer_config.json lacks ``added_tokens_decoder``, also define tokens in
    special_tokens_map.json.
    """
    config = _read_json(folder / "tokenizer_config.json")
    tokens = _named_tokens(config)
    if "added_tokens_decoder" not in config:
        tokens |= _named_tokens(_read_json(folder / "special_tokens_map.json"))
    return tokens


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return all tokens that have names. Other tokens are in lists."""
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(config.get(key), dict):
            named |= config[key]
    return {name: text for name, token in named.items() if (text := _token_text(token)) is not None}


def _token_text(token: object) -> str | None:
    """Return a token's text. A token is a string or an object with a ``content`` field."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _find_source(folder: Path) -> str | None:
    for name in ("processor_config.json", "chat_template.json"):
        if (template := _default(_read_json(folder / name).get("chat_template"))) is not None:
            return template
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    return _default(_read_json(folder / "tokenizer_config.json").get("chat_template"))


def _default(template: Any) -> str | None:
    """Return the default template. Named templates are a list of objects or an object."""
    if isinstance(template, list):
        template = {item["name"]: item["template"] for item in template}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
