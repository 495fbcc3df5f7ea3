"""An answer's text as it comes, taken apart into what is said and what is called.

    text            ->  Said(text)
    <tool_call>{"name": "f", "arguments": {...}}</tool_call>  ->  Called("f"), then Argued(piece) ...

The grammar lets an answer be either, and a call in no other form. A piece of arguments leaves as soon as it
is here; where they end is known from their brackets, whatever their strings say.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

from llava_wire.messages.job import Job

from llava_server.api.tools.prompt import CALL_BEGIN

__all__ = ["Argued", "Called", "Piece", "Said", "ToolReader", "call_id", "call_mode"]

_HEAD = re.compile(r'\{"name": "([a-zA-Z0-9_-]+)", "arguments": ')


@dataclass(frozen=True)
class Said:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Called:
    """A call begins; its arguments follow."""

    name: str


@dataclass(frozen=True)
class Argued:
    """More of the latest call's arguments: a piece of JSON."""

    text: str


Piece = Said | Called | Argued


def call_mode(job: Job) -> str | None:
    """Whether functions have to be called ("auto", "required", "named"); None where there are none."""
    grammar = job.sampling.grammar
    if grammar is None or grammar.kind != "tools":
        return None
    return str(json.loads(grammar.text)["choice"])


def call_id(job_id: str, choice: int, number: int) -> str:
    """Of the choice's call with this number, from 0; whoever writes the answer names its calls alike."""
    return f"call_{hashlib.sha256(f'{job_id} {choice} {number}'.encode()).hexdigest()[:24]}"


class ToolReader:
    """Feed it one answer's text in any pieces. Invariant: what it gave does not depend on the cuts."""

    def __init__(self, *, may_call: bool = True) -> None:
        """Not ``may_call``: whatever comes is text."""
        self.num_calls = 0
        self._waiting = ""  # text whose meaning is not clear yet
        self._state: Literal["start", "text", "head", "arguments", "between"] = (
            "start" if may_call else "text"
        )
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> list[Piece]:
        """What this text makes clear."""
        self._waiting += text
        pieces: list[Piece] = []
        while (step := self._step()) is not None:
            pieces += step
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back of an answer that ends here: the beginning of a call is text."""
        said = self._waiting if self._state == "start" else ""
        self._waiting = ""
        return [Said(said)] if said else []

    def _step(self) -> list[Piece] | None:
        """One thing that became clear; None: more text is needed."""
        if not self._waiting:
            return None
        if self._state == "start":
            return self._start()
        if self._state == "text":
            return [Said(self._take(len(self._waiting)))]
        if self._state == "head":
            return self._read_head()
        if self._state == "arguments":
            return self._read_arguments()
        return self._find_next()

    def _start(self) -> list[Piece] | None:
        if self._waiting.startswith(CALL_BEGIN):
            self._take(len(CALL_BEGIN))
            self._state = "head"
        elif CALL_BEGIN.startswith(self._waiting):
            return None
        else:
            self._state = "text"
        return []

    def _read_head(self) -> list[Piece] | None:
        head = _HEAD.match(self._waiting)
        if head is None:
            return None
        self._take(head.end())
        self._state = "arguments"
        self.num_calls += 1
        return [Called(head[1])]

    def _read_arguments(self) -> list[Piece]:
        for place, character in enumerate(self._waiting):
            if self._closes(character):
                self._state = "between"
                return [Argued(self._take(place + 1))]
        return [Argued(self._take(len(self._waiting)))]

    def _find_next(self) -> list[Piece] | None:
        begin = self._waiting.find(CALL_BEGIN)
        if begin < 0:
            return None
        self._take(begin + len(CALL_BEGIN))
        self._state = "head"
        return []

    def _closes(self, character: str) -> bool:
        """Whether the arguments' object ends with this character."""
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._is_in_string = False
            return False
        if character == '"':
            self._is_in_string = True
        self._depth += (character in "{[") - (character in "}]")
        return self._depth == 0 and character == "}"

    def _take(self, length: int) -> str:
        taken, self._waiting = self._waiting[:length], self._waiting[length:]
        return taken
