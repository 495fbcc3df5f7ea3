"""Prompts of templates for byte-level tokenizers have the token IDs of the original code for the same text.

The original code renders the prompt as text, splits it at the images and tokenizes each part.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llava_wire.messages.job import ImageRef, Message
from llava_worker.language.conversation_templates import CONVERSATION_TEMPLATES
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.language.image_tokens import TileExpander
from llava_worker.language.prompt_builder import PromptBuilder
from llava_worker.language.prompt_formats import SpecialToken
from llava_worker.model.config.image_grid import ImageLayout
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

IMAGE = ImageRef(digest="p", num_tiles=1, side=8, width=5, height=4)
CONVERSATION = [
    Message("user", (IMAGE, "What is this?\nIn one word.")),
    Message("assistant", ("A cat.",)),
    Message("user", ("And this?", IMAGE)),
]
LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI_3 = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SPECIAL_TOKENS = {
    "qwen_1_5": ["<|im_start|>", "<|im_end|>"],
    "llava_llama_3": LLAMA_3,
    "phi": ["<|endoftext|>"],
    "phi3_instruct": [LLAMA_3[0], *PHI_3],
    "phi3_chat": [LLAMA_3[0], *PHI_3],
}


def save_tokenizer(folder: Path, special_tokens: list[str]) -> PreTrainedTokenizerFast:
    """Save a byte-level tokenizer. It has a beginning-of-sequence token only if it is listed."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate([*letters, "ĊĊ", "at"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ"), ("a", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, rstrip=token in PHI_3) for token in special_tokens]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    bos = {"bos_token": LLAMA_3[0]} if LLAMA_3[0] in special_tokens else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(bos))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **bos)


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_token_ids_equal_those_of_the_parts_of_the_original_prompt(tmp_path: Path, name: str) -> None:
    reference = save_tokenizer(tmp_path, SPECIAL_TOKENS[name])
    tokenizer, template = HFTokenizer(tmp_path, image_token_id=300), CONVERSATION_TEMPLATES[name]
    layout = ImageLayout(side=8, tokens_per_tile=2)
    builder = PromptBuilder(
        tokenizer, template, expander=TileExpander(layout, tokenizer.image_token_id), context_length=4096
    )

    text = "".join(
        "<image>" if isinstance(each, ImageRef) else each.token if isinstance(each, SpecialToken) else each
        for each in template.render(CONVERSATION)
    )
    first, *others = (
        reference(part, add_special_tokens=False)["input_ids"] for part in text.split("<image>")
    )
    expected = [*([reference.bos_token_id] if template.has_bos else []), *first]
    for part in others:
        expected += [300, 300, *part]
    assert builder.build_chat(CONVERSATION).token_ids == expected
