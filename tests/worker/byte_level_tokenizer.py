"""The files of a small byte-level tokenizer, as transformers' slow tokenizers wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

__all__ = ["END", "END_ID", "VOCAB_SIZE", "write_tokenizer_files"]

END = "<|endoftext|>"
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "Ġ"), ("1", "2"), ("'", "s"), ("Ċ", "Ċ")]


VOCABULARY = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, MERGES), END]
END_ID = VOCABULARY.index(END)
VOCAB_SIZE = len(VOCABULARY) + 1


def write_tokenizer_files(folder: Path, tokenizer_class: str, **changes: Any) -> Path:
    """Write the files of a tokenizer whose added tokens are those of Phi-2: the end token and two spaces."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    lines = ["#version: 0.2", *map(" ".join, MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    tokens = {
        str(ids[END]): {"content": END, "normalized": False, "special": True, **flags},
        str(len(ids)): {"content": "   ", "normalized": True, "special": False, **flags},
    }
    config = {"tokenizer_class": tokenizer_class, "eos_token": END, "bos_token": END, "unk_token": END}
    config |= {"added_tokens_decoder": tokens} | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
