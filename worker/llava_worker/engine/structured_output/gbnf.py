"""Translates GBNF, llama.cpp's grammar format, to Lark.

    root ::= "a" digits          ->  g0: /\\x{61}/ g1
    digits ::= [0-9]+            ->  g1: /[\\x{30}-\\x{39}]/+

The format is described in grammars/README.md of llama.cpp. vLLM and SGLang use the same format under the name
EBNF. References to tokens and look-ahead, which only some of these programs support, are rejected.

In GBNF, rules match characters. The grammar library splits the output into tokens of its own first and always
matches the longest of them. Each character is therefore a separate Lark token. If no rule is recursive, the
whole grammar is a regular expression, which is faster.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

__all__ = ["GbnfGrammar", "parse_gbnf"]

_MAX_DEPTH = 32  # levels of nested groups
_MAX_REPETITIONS = 2000  # the same limit as in llama.cpp
_MAX_REGEX_CHARS = 16 << 10

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]|\#[^\r\n]*)+)
    |(?P<define>::=)
    |(?P<name>[A-Za-z0-9_-]+)
    |(?P<literal>"(?:[^"\\\r\n]|\\.)*")
    |(?P<set>\[(?:[^\]\\\r\n]|\\.)*\])
    |(?P<count>\{[ ]*\d+[ ]*(?:,[ ]*\d*[ ]*)?\})
    |(?P<mark>[|()*+?.])""",
    re.VERBOSE,
)
_CHARACTER = re.compile(
    r'\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt"\\\[\]/^-]))|([^\\])'
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_MARKS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


@dataclass(frozen=True)
class _Characters:
    regex: str  # matches exactly one character


@dataclass(frozen=True)
class _Reference:
    name: str


@dataclass(frozen=True)
class _Sequence:
    items: tuple[_Node, ...]


@dataclass(frozen=True)
class _Alternatives:
    items: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repetition:
    item: _Node
    minimum: int
    maximum: int | None

    @property
    def count(self) -> str:
        return f"{{{self.minimum},{'' if self.maximum is None else self.maximum}}}"


_Node = _Characters | _Reference | _Sequence | _Alternatives | _Repetition


class GbnfGrammar:
    """A parsed grammar."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        self._rules = rules
        self._numbers = {name: number for number, name in enumerate(rules)}

    def regex(self) -> str | None:
        """Return the grammar as a regular expression. None if a rule is recursive or it is too long."""
        done: dict[str, str] = {}
        for name in _dependencies_first(self._rules):
            if name is None:
                return None
            rule = self._rules[name]
            if sum(len(done[other]) for other in _references(rule)) > _MAX_REGEX_CHARS:
                return None
            done[name] = _regex(rule, done)
        return done["root"]

    def rules(self) -> list[str]:
        """Return the Lark rules. The first one is the start rule."""
        names = sorted(self._rules, key=lambda name: name != "root")
        return [f"g{self._numbers[name]}: {self._lark(self._rules[name])}" for name in names]

    def _lark(self, node: _Node) -> str:
        match node:
            case _Characters(regex):
                return f"/{regex}/"
            case _Reference(name):
                return f"g{self._numbers[name]}"
            case _Sequence(items):
                return " ".join(map(self._lark, items)) or '""'
            case _Alternatives(items):
                return f"({' | '.join(map(self._lark, items))})"
            case _Repetition(item):
                return f"({self._lark(item)}){node.count}"


def parse_gbnf(text: str) -> GbnfGrammar:
    """Parse a grammar. Raises UnsupportedGrammar with the line and column of the first error."""
    return GbnfGrammar(_Parser(text).parse())


class _Parser:
    """A recursive-descent parser. Line breaks have no meaning: a rule ends where the next one begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [token for token in self._split() if token.kind != "space"]
        self._next = 0
        self._references: list[_Token] = []

    def parse(self) -> dict[str, _Node]:
        rules: dict[str, _Node] = {}
        while self._peek().kind != "end":
            name, definition = self._take(), self._take()
            if name.kind != "name" or definition.kind != "define":
                raise self._error("expected a rule of the form: name ::= ...", name)
            if name.text in rules:
                raise self._error(f"the rule {name.text!r} is defined twice", name)
            rules[name.text] = self._alternatives(0)
            if self._peek().kind != "end" and not self._is_rule_next():
                raise self._error(f"unexpected {self._peek().text!r}", self._peek())
        if "root" not in rules:
            raise UnsupportedGrammar(
                "it has no rule named root. Write it in GBNF, for example: root ::= [a-z]+"
            )
        for reference in self._references:
            if reference.text not in rules:
                raise self._error(f"the rule {reference.text!r} is not defined", reference)
        return rules

    def _split(self) -> Iterator[_Token]:
        position = 0
        while position < len(self._text):
            found = _TOKEN.match(self._text, position)
            if found is None:
                token = _Token("?", self._text[position], position)
                raise self._error(f"unexpected {token.text!r}", token)
            yield _Token(found.lastgroup or "", found[0], position)
            position = found.end()
        yield _Token("end", "the end of the grammar", position)

    def _alternatives(self, depth: int) -> _Node:
        items = [self._sequence(depth)]
        while self._peek().text == "|":
            self._take()
            items.append(self._sequence(depth))
        return items[0] if len(items) == 1 else _Alternatives(tuple(items))

    def _sequence(self, depth: int) -> _Node:
        items: list[_Node] = []
        while (item := self._item(depth)) is not None:
            items.append(self._repeated(item))
        return items[0] if len(items) == 1 else _Sequence(tuple(items))

    def _item(self, depth: int) -> _Node | None:
        token = self._peek()
        if token.kind == "end" or token.text in ("|", ")") or self._is_rule_next():
            return None
        self._take()
        if token.kind == "name":
            self._references.append(token)
            return _Reference(token.text)
        if token.kind == "literal":
            codes = self._codes(token, token.text[1:-1])
            return _Sequence(tuple(_Characters(_escaped(code)) for code in codes))
        if token.kind == "set":
            return self._set(token)
        if token.text == ".":
            return _Characters("(?s:.)")
        if token.text == "(":
            if depth >= _MAX_DEPTH:
                raise self._error(f"more than {_MAX_DEPTH} levels of nested groups; define rules", token)
            group = self._alternatives(depth + 1)
            if self._take().text != ")":
                raise self._error("this group is not closed", token)
            return group
        raise self._error(f"unexpected {token.text!r}", token)

    def _repeated(self, item: _Node) -> _Node:
        token = self._peek()
        if token.kind != "count" and token.text not in _MARKS:
            return item
        self._take()
        minimum, maximum = self._count(token) if token.kind == "count" else _MARKS[token.text]
        return _Repetition(item, minimum, maximum)

    def _count(self, token: _Token) -> tuple[int, int | None]:
        """Return the limits of {m}, {m,} or {m,n}."""
        first, separator, second = (part.strip() for part in token.text[1:-1].partition(","))
        # Very long numbers are not converted, because this takes quadratic time.
        if any(len(digits) > 8 or int(digits or 0) > _MAX_REPETITIONS for digits in (first, second)):
            raise self._error(f"a repetition exceeds the limit of {_MAX_REPETITIONS}", token)
        minimum = int(first)
        maximum = (int(second) if second else None) if separator else minimum
        if maximum is not None and maximum < minimum:
            raise self._error(f"the limits of {token.text} are in the wrong order", token)
        return minimum, maximum

    def _set(self, token: _Token) -> _Node:
        """Return a set of characters, such as [a-z_] or [^"]."""
        inner = token.text[1:-1]
        is_negated = inner.startswith("^")
        ranges: list[str] = []
        found = deque(self._characters(token, inner[1:] if is_negated else inner))
        while found:
            first = last = found.popleft()[0]
            if len(found) > 1 and found[0] == (ord("-"), False):
                found.popleft()
                last = found.popleft()[0]
            if last < first:
                raise self._error("a range of characters is in the wrong order", token)
            ranges.append(f"{_escaped(first)}-{_escaped(last)}")
        if not ranges:
            raise self._error("the set of characters is empty", token)
        return _Characters(f"[{'^' if is_negated else ''}{''.join(ranges)}]")

    def _codes(self, token: _Token, text: str) -> list[int]:
        return [code for code, _ in self._characters(token, text)]

    def _characters(self, token: _Token, text: str) -> Iterator[tuple[int, bool]]:
        """Yield the code point of each character, and whether it is escaped."""
        position = 0
        while position < len(text):
            found = _CHARACTER.match(text, position)
            if found is None:
                raise self._error(f"invalid escape sequence {text[position : position + 2]}", token)
            code_2, code_4, code_8, escape, plain = found.groups()
            digits = code_2 or code_4 or code_8
            code = int(digits, 16) if digits else ord(plain or _ESCAPES.get(escape, escape))
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise self._error(f"{found[0]} is not a Unicode character", token)
            yield code, plain is None
            position = found.end()

    def _is_rule_next(self) -> bool:
        return self._peek().kind == "name" and self._tokens[self._next + 1].kind == "define"

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _error(self, problem: str, token: _Token) -> UnsupportedGrammar:
        line = self._text.count("\n", 0, token.position) + 1
        column = token.position - self._text.rfind("\n", 0, token.position)
        return UnsupportedGrammar(f"line {line}, column {column}: {problem}")


def _escaped(code: int) -> str:
    return f"\\x{{{code:x}}}"


def _regex(node: _Node, rules: dict[str, str]) -> str:
    match node:
        case _Characters(regex):
            return regex
        case _Reference(name):
            return rules[name]
        case _Sequence(items):
            return "".join(_regex(item, rules) for item in items)
        case _Alternatives(items):
            return f"(?:{'|'.join(_regex(item, rules) for item in items)})"
        case _Repetition(item):
            return f"(?:{_regex(item, rules)}){node.count}"


def _dependencies_first(rules: dict[str, _Node]) -> Iterator[str | None]:
    """Yield the rules that ``root`` uses, each after the rules that it refers to. Yield None at a cycle."""
    done: set[str] = set()
    path: list[tuple[str, Iterator[str]]] = [("root", _references(rules["root"]))]
    open_names = {"root"}
    while path:
        name, remaining = path[-1]
        following = next((other for other in remaining if other not in done), None)
        if following is None:
            path.pop()
            open_names.discard(name)
            done.add(name)
            yield name
        elif following in open_names:
            yield None
            return
        else:
            open_names.add(following)
            path.append((following, _references(rules[following])))


def _references(node: _Node) -> Iterator[str]:
    match node:
        case _Reference(name):
            yield name
        case _Sequence(items) | _Alternatives(items):
            for item in items:
                yield from _references(item)
        case _Repetition(item):
            yield from _references(item)
        case _Characters():
            pass
