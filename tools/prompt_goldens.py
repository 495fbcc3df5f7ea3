"""Generate the golden prompts in tests/data/prompts by running the tokenizers of the original LLaVA.

    python3 -m venv original
    original/bin/pip install transformers==4.37.2 sentencepiece protobuf
    original/bin/python tools/prompt_goldens.py path/to/llama/tokenizer.json

The script writes Llama's ``tokenizer.model`` from ``tokenizer.json``, loads it with the classes that the
original loads (slow, or fast for Mistral), and tokenizes prompts with them. The prompts follow the original's
rules (``llava/conversation.py`` and ``mm_utils.py`` in ``haotian-liu/LLaVA``). User text never contains a
special token, because llava-serve treats it as plain text, unlike the original.

The script fails if a fast tokenizer, or a tokenizer without the setting ``legacy``, returns IDs that differ
from those of ``"legacy": true``. To test another release of transformers, install that release and add
``--compare``. The script then writes no files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import transformers

Conversation: TypeAlias = dict[str, Any]

# A second copy of this module, such as the one in sentencepiece, could not be imported next to it.
sentencepiece_file: Any = importlib.import_module("transformers.utils.sentencepiece_model_pb2_new")

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "prompts"
RELEASE = "4.37.2"
IMAGE, BOS, EOS = "<image>", "<s>", "</s>"
IMAGE_ID = -200
NUM_PIECES = 32000
FIRST_TEXT_ID = 259  # lower IDs are <unk>, <s>, </s> and the 256 byte tokens
MARKS = ["<im_patch>", "<im_start>", "<im_end>"]
CHATML = ["<|im_start|>", "<|im_end|>"]
NUM_PER_TEMPLATE = 68
NUM_DEFAULT_SYSTEM = 2  # the default system messages are long
NUM_QUESTIONS = (1, 2, 3, 1, 2, 4, 1, 1)

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
    "chatml_direct": "Answer the questions.",
}
ROLES_AND_SEPARATORS = {
    "vicuna_v1": ("USER", "ASSISTANT", " ", EOS),
    "llava_v1": ("USER", "ASSISTANT", " ", EOS),
    "v1_mmtag": ("USER", "ASSISTANT", " ", EOS),
    "llava_v0": ("Human", "Assistant", "###", "###"),
    "v0_mmtag": ("Human", "Assistant", "###", "###"),
}
# Each vocabulary belongs to one kind of checkpoint: LLaVA-1.5, the first LLaVA, and ChatML models whose
# tokens are added to Llama's or, as in Yi, are part of a SentencePiece model without a dummy prefix.
VOCABULARIES = ("llama", "marks", "chatml", "yi")

TEXTS = [
    "What is this?",
    " What is this?",
    "What is this? ",
    "  What  is   this?  ",
    "a",
    " ",
    "    ",
    "\n",
    "\n\nWhat?",
    "What?\n",
    " \n What?",
    "\tWhat?\t",
    "a\r\nb",
    "one\n\n  - two\n\t- three",
    "USER: Hi ASSISTANT: Hello",
    "### Human: a",
    "<S> </S> < s> </ s> <s",
    "</s",
    "<Image></Image> <img> <images>",
    "[INST] a [/INST] <<SYS>> b <</SYS>>",
    "<|im_endl|> <im_stop> <pad > <unk",
    "<0x0A> <0x41>",
    "▁",
    "▁What▁is▁▁this",
    "这张图片里有什么？",
    "図に何がありますか。",
    "ما هذا؟",
    "מה זה",
    "Что это?",
    "Grüße, ça va?",
    "e\u0301 \u200d \ufeff \xa0 x",
    "🦙",
    " 🦙👩‍👩‍👧 ",
    "12345 3.14 1,000,000",
    "a_b.c(d[0]) == {'e': 1};",
    "https://a.com/?b=%20",
    "Answer in one word.",
]
ANSWERS = [
    "A red llama.",
    "Yes",
    " It is a cat. ",
    "No.\n",
    "这是一只猫。",
    "1. a\n2. b",
    "لا",
    "🦙",
    "▁▁",
    "USER",
]


def conversations() -> Iterator[Conversation]:
    """Yield the conversations, the same ones in each run.

    ``turns`` alternate between user turns (lists, in which None represents an image) and assistant turns
    (strings). A last turn of the assistant is continued. ``system`` is absent for the default system message.
    """
    for template in SYSTEM:
        generator = random.Random(template)
        for index in range(NUM_PER_TEMPLATE):
            vocabularies = ("chatml", "yi") if template == "chatml_direct" else ("llama", "llama", "marks")
            entry: Conversation = {
                "template": template,
                "vocabulary": vocabularies[index % len(vocabularies)],
            }
            if index >= NUM_DEFAULT_SYSTEM:
                entry["system"] = generator.choice(["Be brief.", " 你是\n", "a  b"])
            entry["turns"] = list(draw_turns(template, index, generator))
            if index % 5 == 4 and template != "plain":
                entry["turns"].append(generator.choice(ANSWERS))
            yield entry


def draw_turns(template: str, index: int, generator: random.Random) -> Iterator[list[str | None] | str]:
    """Yield user turns (lists) and assistant turns (strings), ending with a user turn."""
    num_questions = 1 if template == "plain" else NUM_QUESTIONS[index % len(NUM_QUESTIONS)]
    for number in range(num_questions):
        if number > 0:
            yield generator.choice(ANSWERS)
        text = TEXTS[(index + 11 * number) % len(TEXTS)]
        num_images = generator.choice([1, 1, 1, 0, 2] if number == 0 else [0, 0, 0, 1])
        # The original treats an empty message as the response that is to be generated.
        is_empty = num_images > 0 and "mmtag" not in template and generator.random() < 0.08
        yield [*[None] * num_images, "" if is_empty else text]


def prompt_text(conversation: Conversation) -> str:
    """Return the text of a prompt, as the original's ``Conversation.get_prompt`` does."""
    template = conversation["template"]
    system = conversation.get("system", SYSTEM[template])
    turns = [text for turn in conversation["turns"] for text in turn_texts(conversation, turn)]
    text = _RULES.get(template, colons_text)(template, system, turns)
    is_continued = isinstance(conversation["turns"][-1], str)
    return text[: text.rindex(turns[-1]) + len(turns[-1])] if is_continued else text


def turn_texts(conversation: Conversation, turn: list[str | None] | str) -> list[str]:
    """Return the texts of one or more turns of the original."""
    if isinstance(turn, str):
        return [turn]
    image = f"<im_start>{IMAGE}<im_end>" if conversation["vocabulary"] == "marks" else IMAGE
    num_images, text = turn.count(None), turn[-1] or ""
    if conversation["template"].endswith("mmtag") and num_images:
        return [f"<Image>{image}</Image>" * num_images, "Received.", text]
    return [f"{image}\n" * num_images + text]


def colons_text(template: str, system: str, turns: list[str]) -> str:
    *roles, first, second = ROLES_AND_SEPARATORS[template]
    text = system + first
    for index, turn in enumerate(turns):
        text += f"{roles[index % 2]}: {turn}{(first, second)[index % 2]}"
    return f"{text}{roles[1]}:"


def inst_text(template: str, system: str, turns: list[str]) -> str:
    opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    separator = BOS if template == "llava_llama_2" else ""
    text = ""
    for index, turn in enumerate([opening + turns[0], *turns[1:]]):
        text += f" {turn} {EOS}" if index % 2 else f"{separator}[INST] {turn} [/INST]"
    return text.removeprefix(separator)


def chatml_text(template: str, system: str, turns: list[str]) -> str:  # noqa: ARG001
    start, end = CHATML
    blocks = [f"system\n{system}"]
    blocks += [f"{('user', 'assistant')[index % 2]}\n{turn}" for index, turn in enumerate(turns)]
    return "".join(f"{start}{block}{end}" for block in blocks) + f"{start}assistant\n"


def plain_text(template: str, system: str, turns: list[str]) -> str:  # noqa: ARG001
    return f"{system}{turns[0]}\n"


_RULES = {
    "llava_llama_2": inst_text,
    "mistral_instruct": inst_text,
    "chatml_direct": chatml_text,
    "plain": plain_text,
}


def prompt_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the token IDs of a prompt, as the original's ``tokenizer_image_token`` does."""
    ids: list[int] = []
    for index, chunk in enumerate(text.split(IMAGE)):
        chunk_ids = tokenizer(chunk).input_ids
        num_bos = chunk_ids[:1] == [tokenizer.bos_token_id]
        ids += chunk_ids if index == 0 else [IMAGE_ID, *chunk_ids[num_bos:]]
    return ids


def write_checkpoint(folder: Path, pieces: dict[str, int], vocabulary: str, *, legacy: bool | None) -> None:
    """Write the tokenizer files of a checkpoint with this vocabulary."""
    is_yi = vocabulary == "yi"
    write_model(
        folder / "tokenizer.model", pieces, user_defined=CHATML if is_yi else [], has_prefix=not is_yi
    )
    config: dict[str, Any] = {"bos_token": BOS, "eos_token": EOS, "unk_token": "<unk>"}
    if vocabulary in ("chatml", "yi"):
        config |= {"eos_token": CHATML[1], "add_bos_token": False}
    if legacy is not None:
        config["legacy"] = legacy
    config["tokenizer_class"] = "LlamaTokenizer"
    added = {"marks": MARKS, "chatml": CHATML}.get(vocabulary, [])
    ids = {token: NUM_PIECES + index for index, token in enumerate(added)}
    if vocabulary == "chatml":
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        tokens = dict(enumerate(("<unk>", BOS, EOS))) | {number: token for token, number in ids.items()}
        config["added_tokens_decoder"] = {
            str(number): {"content": token, **flags} for number, token in tokens.items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps(ids))


def write_model(path: Path, pieces: dict[str, int], *, user_defined: list[str], has_prefix: bool) -> None:
    """Write a SentencePiece model. Only the order of the scores matters: runs of spaces are merged last."""
    model = sentencepiece_file.ModelProto()
    model.trainer_spec.model_type = sentencepiece_file.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = has_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = sentencepiece_file.ModelProto.SentencePiece
    ordered = sorted((number, piece) for piece, number in pieces.items() if number < NUM_PIECES)
    for number, text in ordered:
        is_text = number >= FIRST_TEXT_ID
        score = 0.0 if not is_text else -1e9 if set(text) == {"▁"} else float(FIRST_TEXT_ID - number)
        low = kinds.UNKNOWN if number == 0 else kinds.CONTROL if number < 3 else kinds.BYTE
        model.pieces.add(piece=text, score=score, type=kinds.NORMAL if is_text else low)
    for text in user_defined:
        model.pieces.add(piece=text, score=0.0, type=kinds.USER_DEFINED)
    path.write_bytes(model.SerializeToString())


def load_tokenizers(pieces: dict[str, int], vocabulary: str) -> dict[tuple[bool | None, str], Any]:
    """Load the slow and the fast tokenizer for each value of ``legacy``."""
    tokenizers = {}
    for legacy in (True, False, None):
        with tempfile.TemporaryDirectory() as name:
            write_checkpoint(Path(name), pieces, vocabulary, legacy=legacy)
            for kind in ("slow", "fast"):
                tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=kind == "fast")
                if vocabulary == "marks":  # as in the original's model/builder.py
                    tokenizer.add_tokens(MARKS, special_tokens=True)
                tokenizers[legacy, kind] = tokenizer
    return tokenizers


def generate(pieces: dict[str, int], golden: list[Conversation], *, is_strict: bool) -> None:
    """Add the token IDs to the conversations: ``ids``, and ``modern_ids`` if ``legacy`` changes them.

    The fast tokenizer of Yi is ignored, because the original does not load it.
    """
    tokenizers = {vocabulary: load_tokenizers(pieces, vocabulary) for vocabulary in VOCABULARIES}
    for entry in golden:
        text = prompt_text(entry)
        found = {
            key: prompt_ids(text, tokenizer) for key, tokenizer in tokenizers[entry["vocabulary"]].items()
        }
        legacy, modern = found[True, "slow"], found[False, "slow"]
        for key, ids in found.items():
            is_fast_yi = key[1] == "fast" and entry["vocabulary"] == "yi"
            if is_strict and key != (False, "slow") and ids != legacy and not is_fast_yi:
                raise SystemExit(f"The IDs of {key} differ from those of 'legacy': true for {text!r}.")
        entry["ids"] = legacy
        if modern != legacy:
            entry["modern_ids"] = modern


def segments(prompt: str) -> list[str]:
    """Split a prompt at the special tokens, and also return the tokens, which users may type."""
    return re.split("(" + "|".join(map(re.escape, [IMAGE, BOS, EOS, *MARKS, *CHATML])) + ")", prompt)


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


def compare(golden: list[Conversation], pieces: dict[str, int]) -> None:
    """Print how many prompts have different IDs in the installed release, per vocabulary."""
    stored = [json.loads(line) for line in (FOLDER / "conversations.jsonl").read_text("utf-8").splitlines()]
    generate(pieces, golden, is_strict=False)
    for name, legacy in (("ids", "true"), ("modern_ids", "false")):
        pairs = zip(stored, golden, strict=True)
        differ = [new for old, new in pairs if old.get(name, old["ids"]) != new.get(name, new["ids"])]
        counts = dict(Counter(entry["vocabulary"] for entry in differ))
        print(f"transformers {transformers.__version__}, legacy {legacy}: {counts} of {len(stored)} differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="path of Llama's tokenizer.json")
    parser.add_argument("--compare", action="store_true", help="compare another release with the golden file")
    arguments = parser.parse_args()
    description = json.loads(arguments.tokenizer.read_text("utf-8"))
    pieces = description["model"]["vocab"]
    golden = list(conversations())
    if arguments.compare:
        compare(golden, pieces)
        return
    if transformers.__version__ != RELEASE:
        raise SystemExit(f"transformers {RELEASE} is required, but {transformers.__version__} is installed.")
    generate(pieces, golden, is_strict=True)
    lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in golden]
    part = needed_part(description, [text for entry in golden for text in segments(prompt_text(entry))])
    (FOLDER / "conversations.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    text = json.dumps(part, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / "tokenizer.json").write_text(text + "\n", "utf-8")
    config = {"bos_token": BOS, "eos_token": EOS, "unk_token": "<unk>"}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config) + "\n", "utf-8")
    num_modern = sum("modern_ids" in entry for entry in golden)
    num_pieces = len(part["model"]["vocab"]) - FIRST_TEXT_ID
    print(f"{len(golden)} prompts, {num_modern} depend on legacy; {num_pieces} text pieces")


if __name__ == "__main__":
    main()
