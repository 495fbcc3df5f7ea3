"""The tiny LLaVA's tokenizer: Llama's scheme (dummy prefix, byte fallback) with 1,200 tokens.

Words that occur in questions are single tokens. Numbers and sequences of capital letters are split into
characters, so the model has to spell the text that it reads in an image.
"""

import json
import random
import re
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tiny.conversations import KINDS, SYSTEM, ask_none, ask_one, ask_two, sample_system
from tiny.scenes import sample_scene

__all__ = ["BOS", "EOS", "IMAGE", "PAD", "SIZE", "build"]

SIZE = 1200  # including <image> and <pad>, the last two IDs
BOS, EOS = 1, 2
IMAGE, PAD = SIZE - 2, SIZE - 1
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_ROLES = ("▁USER", "▁ASSISTANT")
_CAPITALS = re.compile(r"[A-Z]{2,}")
# General English text, so that other words are not split into single letters.
_ENGLISH = """
The quick brown fox jumps over the lazy dog. A man is riding a bicycle down the street with his friend.
I would like to know more about this. Could you please explain what happened yesterday in the city?
There was a time when people used to write letters to each other, and they waited many days for an answer.
This is not what I wanted to say, but it will have to do for now. Where did you put my new shoes?
She went to the market because she needed some bread, a little cheese and something sweet for the children.
We should always be careful with water near the computer. He thinks that they were right about everything.
If you want to learn something new every day, reading good books is one of the best ways to do it.
The weather has been very cold lately, so the birds have left for warmer countries. Once upon a time.
Writing a small program that works is more useful than planning a large one that never will be finished.
After the rain the garden smelled of flowers and grass, and the sun came out from behind the clouds again.
Which of these do you think is better, and why? It depends on what you are looking for, of course.
Make sure that you have saved your work before you turn off the machine. Write a poem about the sea.
My brother and my sister live in the house next to the river, where the old bridge used to stand.
What happens when you mix these two things together? Nothing much happens, at least not at first.
Tell me a story. Give me an example. Write it again. Show me how to use this. Say something funny.
Is it really true? Yes, it is. No, it is not. Maybe, who knows. Hello world, how are you doing today?
""".strip()


def build() -> Tokenizer:
    """Train the tokenizer on a fixed stream of conversations. Every call returns the same result."""
    trained = Tokenizer(models.BPE(byte_fallback=False))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    alphabet = [chr(code) for code in range(33, 127)] + ["▁"]
    special = ["<unk>", "<s>", "</s>"]
    prefixed = len("ABCDEFGHIJKLMNOPQRSTUVWXYZ") + sum(len(role) - 2 for role in _ROLES)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 2 - 256 - prefixed,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator(_corpus(), trainer)
    return _llama_style(json.loads(trained.to_str())["model"]["merges"], special, alphabet)


def _llama_style(learned: list[list[str]], special: list[str], alphabet: list[str]) -> Tokenizer:
    merges = [("▁", chr(code)) for code in range(ord("A"), ord("Z") + 1)]
    merges += [(left, right) for left, right in learned if (left, right) not in merges]
    for role in _ROLES:  # left to right, so that capital letters within a word are never merged
        merges += [
            (role[:end], role[end]) for end in range(2, len(role)) if (role[:end], role[end]) not in merges
        ]
    pieces = list(
        dict.fromkeys([*special, *_BYTES, *sorted(alphabet), *(left + right for left, right in merges)])
    )
    dropped = len(pieces) - (SIZE - 2)
    if dropped > 0:  # remove the rarest learned merges; no other merge depends on them
        for left, right in [pair for pair in reversed(merges) if list(pair) in learned][:dropped]:
            merges.remove((left, right))
            pieces.remove(left + right)
    while len(pieces) < SIZE - 2:
        pieces.append(f"<unused{len(pieces)}>")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _corpus() -> Iterator[str]:
    rng = random.Random("tokenizer")
    for index in range(6000):
        first, second = sample_scene("tokenizer", 2 * index), sample_scene("tokenizer", 2 * index + 1)
        kind = KINDS[index % len(KINDS)]
        if kind == "two pictures":
            conversation = ask_two(first, second, rng)
        elif kind == "no picture":
            conversation = ask_none(first, rng)
        else:
            conversation = ask_one(first, kind, rng) or ask_none(first, rng)
        texts = [
            part for turn in conversation.turns for part in (turn.question, "\n" + turn.question, turn.answer)
        ]
        if index % 10 == 0:
            texts += [SYSTEM, sample_system(rng)]
        for text in texts:
            yield "▁" + _CAPITALS.sub("", text).replace(" ", "▁")
    for line in _ENGLISH.split("\n"):
        for _ in range(3):
            yield "▁" + line.replace(" ", "▁")
