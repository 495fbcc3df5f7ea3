"""Response formats: instructions that LLaVA-1.5 was trained to follow.

The instruction is placed on a separate line after the question. The instructions come from Tables 7 and 8 of
the LLaVA-1.5 paper (arXiv 2310.03744) and from the evaluation scripts in the LLaVA repository. Unlike in
these sources, the two sentences of "unanswerable" are on separate lines. "sentence" is an alias for
"caption". Other models treat the instructions like any other text.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["FORMATS", "FormatName", "format_question"]

FormatName: TypeAlias = Literal[
    "short", "option", "option_zh", "unanswerable", "sentence", "caption", "region", "box"
]

_SHORT = "Answer the question using a single word or phrase."
_CAPTION = "Provide a one-sentence caption for the provided image."

FORMATS: dict[FormatName, str] = {
    "short": _SHORT,
    "option": "Answer with the option's letter from the given choices directly.",
    "option_zh": "请直接回答选项字母。",
    "unanswerable": "When the provided information is insufficient, respond with 'Unanswerable'.\n" + _SHORT,
    "sentence": _CAPTION,
    "caption": _CAPTION,
    "region": "Provide a short description for this region.",
    "box": "Provide the bounding box coordinate of the region this sentence describes.",
}


def format_question(question: str | None, name: FormatName | None) -> str | None:
    """Return the question followed by the instruction for the format.

    If ``question`` is None, return the instruction alone for caption formats, and None for all other formats.
    Raises ValueError if the format is unknown.
    """
    if name is None:
        return question
    if name not in FORMATS:
        names = ", ".join(get_args(FormatName))
        raise ValueError(f"Unknown format {name!r}. Use one of {names}.")
    if not question:
        return FORMATS[name] if question == "" or FORMATS[name] == _CAPTION else None
    return f"{question}\n{FORMATS[name]}"
