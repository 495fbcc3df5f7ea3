"""Token sequences of the ``bad_words`` of a request."""

from __future__ import annotations

from collections.abc import Iterable

from llava_worker.language.tokenizer import Tokenizer

__all__ = ["bad_word_ids"]


def bad_word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that the output must not contain.

    As in vLLM (``SamplingParams.update_from_tokenizer``), each word is encoded without and with a leading
    space. The second sequence is used only if it starts with a different token and is as long as the first
    one. Otherwise, it consists of a space followed by the first sequence, which is excluded anyway.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare, spaced = (
            tuple(tokenizer.encode_segment(prefix + word.lstrip(), is_first=True)) for prefix in ("", " ")
        )
        if bare:
            found[bare] = None
        if bare and len(spaced) == len(bare) and spaced[0] != bare[0]:
            found[spaced] = None
    return tuple(found)
