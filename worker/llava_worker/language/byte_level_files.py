"""Reads ``vocab.json`` and ``merges.txt``, the only tokenizer files in many checkpoints with Phi or Qwen2.

transformers writes these files for the slow tokenizers of GPT-2, CodeGen (Phi's) and Qwen2. They contain a
byte-level vocabulary. All other properties are fixed for each class, and are the same here as in
transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from llava_worker.language.tokenizer import TokenizerError
from llava_worker.model.config.untrusted_file import read_json_object, read_text

__all__ = ["BYTE_LEVEL_FILES", "has_byte_level_files", "read_byte_level_files"]

BYTE_LEVEL_FILES = ("vocab.json", "merges.txt")
_MAX_MERGES_BYTES = 16 << 20  # Qwen2's file, one of the largest, is 1.7 MB
_MAX_ADDED_TOKENS = 1 << 16
_QWEN2_PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_GPT_2, _QWEN2 = ("GPT2Tokenizer", "CodeGenTokenizer"), ("Qwen2Tokenizer",)
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def has_byte_level_files(folder: Path) -> bool:
    return all((folder / name).is_file() for name in BYTE_LEVEL_FILES)


def read_byte_level_files(folder: Path) -> Tokenizer:
    """Read the tokenizer. Raises TokenizerError, or CheckpointError if a file cannot be read."""
    config = read_json_object(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name not in (*_GPT_2, *_QWEN2):
        supported = ", ".join((*_GPT_2, *_QWEN2))
        raise TokenizerError(
            f"{folder} has no tokenizer.json, and its tokenizer_class is {name!r:.80}. Only {supported} can "
            "be read from vocab.json and merges.txt. Save the tokenizer with transformers to get a "
            "tokenizer.json."
        )
    tokenizer = Tokenizer(_read_model(folder))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
        parts = pre_tokenizers.Split(Regex(_QWEN2_PARTS), "isolated")
        bytes_of_parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([parts, bytes_of_parts])
    _add_tokens(tokenizer, folder, config)
    return tokenizer


def _read_model(folder: Path) -> models.BPE:
    vocabulary = read_json_object(folder / "vocab.json")
    lines = read_text(folder / "merges.txt", max_bytes=_MAX_MERGES_BYTES).split("\n")
    pairs: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        return models.BPE(vocab=vocabulary, merges=pairs)
    except Exception as error:  # the tokenizers library raises a plain Exception for invalid merges
        raise TokenizerError(
            f"vocab.json and merges.txt in {folder} are not a valid vocabulary: {error!s:.500}"
        ) from error


def _add_tokens(tokenizer: Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Add the tokens that the vocabulary lacks, in the order of their IDs, and mark special tokens."""
    added = _added_tokens(folder, config)
    if len(added) > _MAX_ADDED_TOKENS:
        raise TokenizerError(f"{folder} has {len(added)} added tokens; the limit is {_MAX_ADDED_TOKENS}.")
    for token_id, token in sorted(added.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise TokenizerError(
                f"The added token {token.content!r:.80} in {folder} has the ID {token_id}, but the next ID "
                f"after the vocabulary is {tokenizer.token_to_id(token.content)}. Use the tokenizer files "
                "that were published with the checkpoint."
            )


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Return the tokens in tokenizer_config.json, in which transformers describes them since version 4.34."""
    try:
        return {
            int(token_id): AddedToken(
                str(entry["content"]), **{flag: bool(entry.get(flag, False)) for flag in _FLAGS}
            )
            for token_id, entry in config["added_tokens_decoder"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'} is invalid. added_tokens_decoder must map token IDs to "
            'objects with a content, for example {"50256": {"content": "<|endoftext|>", "special": true}}.'
        ) from error
