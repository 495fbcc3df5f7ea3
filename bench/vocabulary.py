"""Create a tokenizer with a vocabulary of any size, in the format of Llama's ``tokenizer.json``.

The tokenizer is for models with random weights. Each listed word is a single token, and all other text is
split into letters and bytes (byte fallback). The number of tokens in a prompt can therefore be computed from
its words. The words form a trie: each merge appends the next letter to a prefix of a word, and there are no
conflicting merges. The rest of the vocabulary is filled with made-up words, so that every
output token decodes to text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["chat_template", "write_tokenizer"]

_SPACE = "\u2581"  # represents a space in SentencePiece
_SPECIALS = ("<unk>", "<s>", "</s>")
_FIRST_LETTERS, _LETTERS = "bcdfghjklmnprstvwz", "aeiou"
_LETTERS_ALONE = [chr(code) for code in range(0x21, 0x7F)]

# The system prompt of LLaVA-1.5.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_TEMPLATE_WORDS = (*SYSTEM.replace(".", " ").replace(",", " ").replace("'", " ").split(), "USER", "ASSISTANT")


def write_tokenizer(folder: Path, words: Iterable[str], *, size: int, image_id: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` to ``folder``.

    The vocabulary has ``size`` IDs, with ``<image>`` at ``image_id`` and ``<pad>`` right after it. Raises
    ValueError if the words need more than ``image_id`` IDs.
    """
    pieces, merges = _trie([*_TEMPLATE_WORDS, *words])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    named = list(dict.fromkeys([*_SPECIALS, *bytes_, _SPACE, *_LETTERS_ALONE, *pieces]))
    if len(named) > image_id:
        num_tokens = len(named)
        raise ValueError(f"The words require {num_tokens} tokens; the limit is {image_id}. Use fewer words.")
    known = set(named)
    made_up = (word for word in _made_up_words() if word not in known)
    named += itertools.islice(made_up, image_id - len(named))
    extra = ["<image>", "<pad>"]
    extra += itertools.islice((f"<extra_{i}>" for i in itertools.count()), size - image_id - len(extra))
    document = _document([*named, *extra], merges, specials=[*_SPECIALS, *extra[:2]])
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
        "extra_special_tokens": {"image_token": "<image>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def chat_template() -> str:
    """Return the vicuna_v1 chat template as Jinja, for servers that read it from the checkpoint."""
    return (
        "{{- bos_token -}}"
        f'{{{{- "{SYSTEM} " -}}}}'
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{{- 'USER: ' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] if part['type'] in ('image', 'image_url') -%}"
        "{{- '<image>\\n' -}}{%- endfor -%}"
        "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
        "{%- endif -%}{{- ' ASSISTANT:' -}}"
        "{%- elif message['role'] == 'assistant' -%}{{- ' ' -}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
        "{{- eos_token -}}{%- endif -%}{%- endfor -%}"
    )


def _trie(words: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Return the prefixes of all words, sorted by length, and the merge that produces each prefix."""
    beginnings = {f"{_SPACE}{word[:end]}" for word in words for end in range(1, len(word) + 1)}
    pieces = sorted(beginnings, key=lambda piece: (len(piece), piece))
    return pieces, [[piece[:-1], piece[-1]] for piece in pieces]


def _made_up_words() -> Iterator[str]:
    syllables = [first + vowel for first in _FIRST_LETTERS for vowel in _LETTERS]
    for count in itertools.count(2):
        for parts in itertools.product(syllables, repeat=count):
            yield _SPACE + "".join(parts)


def _document(tokens: list[str], merges: list[list[str]], *, specials: list[str]) -> dict[str, Any]:
    ids = {token: number for number, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in specials],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [ids["<s>"]], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }
