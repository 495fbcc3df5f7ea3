"""The code blocks of a Markdown page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CodeBlock", "code_blocks"]

_BLOCK = re.compile(
    r"^(?:<!-- not executed: (?P<reason>[^>\n]+?) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class CodeBlock:
    """One fenced code block.

    ``reason`` is the text of a comment ``<!-- not executed: ... -->`` on the line before the block, or None
    if there is no such comment.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def name(self) -> str:
        """Page and line, for test IDs and messages."""
        return f"{self.page}:{self.line}"


def code_blocks(path: Path, root: Path) -> list[CodeBlock]:
    """Return the code blocks of a page in order. Paths are shown relative to ``root``."""
    text = path.read_text("utf-8")
    return [
        CodeBlock(
            page=path.relative_to(root).as_posix(),
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            code=match["code"],
            reason=match["reason"],
        )
        for match in _BLOCK.finditer(text)
    ]
