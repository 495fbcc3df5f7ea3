"""Reads a checkpoint's chat template, and the special tokens that it can use as variables.

Both are read from the same files as in transformers 5, with the same precedence
(``processing_utils.py`` and ``tokenization_utils_base.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_worker.language.prompt_formats import ChatTemplateError
from llava_worker.model.config.untrusted_file import read_json_object, read_text

__all__ = ["has_chat_template", "read_chat_template", "read_special_tokens"]


_MAX_TEMPLATE_BYTES = 1 << 20


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
    config = read_json_object(folder / "tokenizer_config.json")
    tokens = _named_tokens(config)
    if "added_tokens_decoder" not in config:
        tokens |= _named_tokens(read_json_object(folder / "special_tokens_map.json"))
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
        if (template := _read_default(folder / name)) is not None:
            return template
    path = folder / "chat_template.jinja"
    if path.exists():
        return read_text(path, max_bytes=_MAX_TEMPLATE_BYTES)
    return _read_default(folder / "tokenizer_config.json")


def _read_default(path: Path) -> str | None:
    """Return the default template in the file. Named templates are a list of objects or an object."""
    template = read_json_object(path).get("chat_template")
    if isinstance(template, list):
        template = dict(map(_name_and_source, template))
    if isinstance(template, dict):
        template = template.get("default")
    if template is None or (isinstance(template, str) and len(template) <= _MAX_TEMPLATE_BYTES):
        return template
    raise ChatTemplateError(
        f"{path} is invalid. chat_template must be a string of up to {_MAX_TEMPLATE_BYTES} characters, or a "
        'list of objects that contain the strings "name" and "template".'
    )


def _name_and_source(item: Any) -> tuple[str, Any]:
    """Return the name and the source of a template, or "default" and the item itself if it is invalid."""
    if isinstance(item, dict) and isinstance(item.get("name"), str):
        return item["name"], item.get("template")
    return "default", item
