"""Common words for generated questions. Most vocabularies encode each of these words as one token."""

from __future__ import annotations

__all__ = ["WORDS"]

_TEXT = """
what is shown in this picture please describe the objects and their colours say where each thing stands
which one is left of the red door behind a small table how many people are there who sits near the window
tell me about light shadow water grass road car tree house sky bird dog cat hand face book glass paper
first then after that look again at every part from top to bottom with care name what you see as it is
short long old new big dark bright green blue white black round open near far under over between before
"""

WORDS = tuple(dict.fromkeys(_TEXT.split()))
