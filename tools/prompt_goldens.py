"""Generate the golden token IDs in tests/data/prompts and a minimal tokenizer for them.

    python tools/prompt_goldens.py path/to/llama/tokenizer.json

The script adds token IDs to the conversations in ``conversations.json``, with -200 for each image as in the
original LLaVA. The IDs are computed with independent implementations of SentencePiece and of the original's
prompt rules (``llava/conversation.py``, ``mm_utils.py``), which share no code with the worker. The script
also compares the IDs with the output of the tokenizers library. To add a conversation, add an entry without
IDs and run the script.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "prompts"

# Placeholders for special tokens in the text of a prompt. User text is never parsed for special tokens.
IMAGE, BOS, EOS = "\x00", "\x01", "\x02"
MARK_IDS = {IMAGE: -200, BOS: 1, EOS: 2}
FIRST_TEXT_ID = 259  # lower IDs are <unk>, <s>, </s> and the 256 byte tokens, which never match text
SPACES_LAST, NEVER = 10**9, 10**10

CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
TAGS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.The visual content will be provided with the following format: <Image>visual "
    "content</Image>."
)
LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
SYSTEM = {
    "vicuna_v1": CURIOUS.format("user"),
    "llava_v1": CURIOUS.format("human"),
    "llava_v0": CURIOUS.format("human"),
    "v0_mmtag": TAGS,
    "v1_mmtag": TAGS,
    "llava_llama_2": LLAMA_2,
    "mistral_instruct": "",
    "plain": "",
}
ROLES_AND_SEPARATORS = {
    "vicuna_v1": ("USER", "ASSISTANT", " ", EOS),
    "llava_v1": ("USER", "ASSISTANT", " ", EOS),
    "v1_mmtag": ("USER", "ASSISTANT", " ", EOS),
    "llava_v0": ("Human", "Assistant", "###", "###"),
    "v0_mmtag": ("Human", "Assistant", "###", "###"),
}


def prompt_text(template: str, messages: list[dict[str, Any]]) -> str:
    """Return the text of a prompt, as the original's ``Conversation.get_prompt`` does."""
    system = SYSTEM[template]
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"][0], messages[1:]
    turns = [turn for message in messages for turn in turns_of(template, message)]
    if template in ROLES_AND_SEPARATORS:
        *roles, first, second = ROLES_AND_SEPARATORS[template]
        text = system + first if system else ""
        for i, turn in enumerate(turns):
            text += roles[i % 2] + ": " + turn + (first, second)[i % 2]
        return text + roles[1] + ":"
    if template == "plain":
        return system + "".join(turn + "\n" for turn in turns)
    separator = BOS if template == "llava_llama_2" else ""
    text = ""
    for i, turn in enumerate(turns):
        if i == 0 and system:
            turn = f"<<SYS>>\n{system}\n<</SYS>>\n\n{turn}"
        text += f"{separator}[INST] {turn} [/INST]" if i % 2 == 0 else f" {turn} {EOS}"
    return text.removeprefix(separator)


def turns_of(template: str, message: dict[str, Any]) -> list[str]:
    """Convert a message to one or more turns. None in the content represents an image."""
    num_images = message["content"].count(None)
    text = "\n".join(part for part in message["content"] if part is not None)
    if template.endswith("mmtag") and num_images:
        return [f"<Image>{IMAGE}</Image>" * num_images, "Received.", text]
    return [f"{IMAGE}\n" * num_images + text]


def prompt_ids(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Return the token IDs, as the original's ``tokenizer_image_token`` does. The first ID is that of <s>.

    Each piece of text between special tokens is encoded separately.
    """
    ids = [MARK_IDS[BOS]]
    for part in re.split(f"([{IMAGE}{BOS}{EOS}])", text):
        ids += [MARK_IDS[part]] if part in MARK_IDS else sentencepiece(part, vocabulary)
    return ids


def sentencepiece(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Encode a text with byte-pair encoding, as SentencePiece does for Llama.

    A space is prepended to the text. Each step merges the adjacent pair of symbols that comes first in the
    merge order. Ties are resolved from left to right. Characters that are not in the vocabulary become byte
    tokens.
    """
    if not text:
        return []
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        orders = [merge_order(a + b, vocabulary) for a, b in zip(symbols, symbols[1:], strict=False)]
        best = min(orders, default=NEVER)
        if best == NEVER:
            break
        at = orders.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids: list[int] = []
    for symbol in symbols:
        is_known = vocabulary.get(symbol, 0) >= FIRST_TEXT_ID
        ids += [vocabulary[symbol]] if is_known else [3 + byte for byte in symbol.encode()]
    return ids


def merge_order(piece: str, vocabulary: dict[str, int]) -> int:
    """Return the position of a merge in the merge order.

    In Llama's tokenizer.model, scores decrease as IDs increase, except that runs of spaces have the lowest
    scores.
    """
    number = vocabulary.get(piece, 0)
    if number < FIRST_TEXT_ID:
        return NEVER
    return SPACES_LAST if set(piece) == {"▁"} else number


def needed_part(tokenizer: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Return the tokenizer, without pieces that do not occur in any of the texts."""
    everything = "\x03".join("▁" + text.replace(" ", "▁") for text in texts)
    model = tokenizer["model"]
    specials = {token["content"] for token in tokenizer["added_tokens"]}
    kept = {
        piece: number
        for piece, number in model["vocab"].items()
        if number < FIRST_TEXT_ID or piece in specials or piece in everything
    }
    merges = [merge for merge in model["merges"] if "".join(merge) in kept]
    return {**tokenizer, "model": {**model, "vocab": kept, "merges": merges}}


def library_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the same IDs as ``prompt_ids``, but computed with the tokenizers library.

    The library does not prepend a space if the text already starts with one, so the space is added here.
    """
    ids = [MARK_IDS[BOS]]
    for part in re.split(f"([{IMAGE}{BOS}{EOS}])", text):
        known = f" {part}" if part.startswith(" ") else part
        ids += [MARK_IDS[part]] if part in MARK_IDS else tokenizer.encode(known, add_special_tokens=False).ids
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="path of Llama's tokenizer.json")
    path = parser.parse_args().tokenizer
    description = json.loads(path.read_text("utf-8"))
    conversations = json.loads((FOLDER / "conversations.json").read_text("utf-8"))
    prompts = [prompt_text(entry["template"], entry["messages"]) for entry in conversations]
    segments = [part for text in prompts for part in re.split(f"[{IMAGE}{BOS}{EOS}]", text)]
    special = [token["content"] for token in description["added_tokens"]]
    part = json.dumps(needed_part(description, segments + special), ensure_ascii=False, separators=(",", ":"))
    libraries = [Tokenizer.from_str(path.read_text("utf-8")), Tokenizer.from_str(part)]
    for entry, text in zip(conversations, prompts, strict=True):
        entry["ids"] = prompt_ids(text, description["model"]["vocab"])
        for library in libraries:
            library.encode_special_tokens = True
            if library_ids(text, library) != entry["ids"]:
                about = entry["about"]
                raise SystemExit(
                    f"The tokenizers library returns different token IDs for the conversation {about!r}."
                )
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in conversations)
    (FOLDER / "conversations.json").write_text(f"[\n{lines}\n]\n", "utf-8")
    (FOLDER / "tokenizer.json").write_text(part + "\n", "utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config) + "\n", "utf-8")
    print(f"{len(conversations)} conversations; the tokenizer has {len(part.encode())} bytes")


if __name__ == "__main__":
    main()
