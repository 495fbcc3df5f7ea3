"""Tests of grammars in GBNF: which outputs they allow, and the errors for invalid and hostile grammars."""

from __future__ import annotations

import pytest
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine.structured_output.gbnf import parse_gbnf
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

from tests.worker.engine.structured_output.grammar_kit import Vocabulary, accepts

CALL = r"""
# a nested list of calls
root  ::= call ("\n" call)*
call  ::= name "(" (
            value ("," " "? value)*    # arguments
          )? ")"
name  ::= [a-z] [a-zA-Z0-9_-]{0,15}
value ::= call | number
  | string
number ::= "-"? [0-9]+ ("." [0-9]+)?
string ::= "\"" ([^"\\\x00-\x1F] | "\\" ["\\/n] | "\\u" [0-9a-fA-F]{4})* "\""
"""

# grammar -> (accepted outputs, rejected outputs)
GRAMMARS: dict[str, tuple[list[str], list[str]]] = {
    'root ::= "yes" | "no"': (["yes", "no"], ["", "y", "yesno"]),
    # A rule can end with a character that its repetition also matches.
    'root ::= [a-z]+ "x"': (["abx", "xx"], ["x", "ab"]),
    'root ::= "ab" "cd" | "a" "bce"': (["abcd", "abce"], ["abc"]),
    'root ::= a\na ::= "(" a ")" | [^()]{2,3} | ': (["((ab))", "()", "abc"], ["(ab", "a", "abcd"]),
    'root ::= . ".."? [-z] [a\\-c]': (["日--", "x..zc"], ["xaa", "xxza"]),
    'root ::= "\\u65e5" [\\U0001F600-\\U0001F602]': (["日😁"], ["日", "日😃"]),
    'root ::= "a"{2} "b"{1,} "c"{0,2}': (["aab", "aabbcc"], ["ab", "aabccc"]),
    "root ::= select-x\nselect-x ::= select_y\nselect_y ::= [\\]\\[]": (["[", "]"], ["\\"]),
    CALL: (['f(g(1, "a\\n"),-2.5)\nh()', 'f("é\\u00e9")'], ["f(", "F()", 'f("\\x")', "f() g()"]),
}


def test_an_output_matches_the_grammar_character_by_character(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    for grammar, (accepted, rejected) in GRAMMARS.items():
        for text in accepted:
            assert accepts(grammars, vocabulary, "gbnf", grammar, text), (grammar, text)
        for text in rejected:
            assert not accepts(grammars, vocabulary, "gbnf", grammar, text), (grammar, text)


INVALID = {
    'root ::= "a" missing': "line 1, column 14: the rule 'missing' is not defined",
    'root ::= "a"\nroot ::= "b"': "line 2, column 1: the rule 'root' is defined twice",
    'root ::= (\n"a"': "line 1, column 10: this group is not closed",
    'root ::= "a" )': "line 1, column 14: unexpected ')'",
    'root ::= "a\n"': "line 1, column 10: unexpected '\"'",
    'root ::= "\\q"': "invalid escape sequence",
    'root ::= "\\uD800"': "not a Unicode character",
    "root ::= [z-a]": "wrong order",
    "root ::= []": "empty",
    'root ::= "a"{3,1}': "wrong order",
    'root ::= "a"{99999}': "limit of 2000",
    f'root ::= "a"{{{"9" * 5000}}}': "limit of 2000",
    'root ::= "a"**': "line 1, column 14: unexpected '*'",
    f'root ::= {"(" * 99}"a"{")" * 99}': "nested groups",
    "root ::= <[12]>": "line 1, column 10: unexpected '<'",
    "start: /[a-z]+/": "line 1, column 6: unexpected ':'",
    'a ::= "b"': "no rule named root",
    "": "no rule named root",
    'root ::= "a" root': "no text matches it",
}


def test_an_invalid_grammar_is_an_error_with_its_position(grammars: GrammarCache) -> None:
    for grammar, problem in INVALID.items():
        with pytest.raises(UnsupportedGrammar) as raised:
            grammars.compile(Grammar("gbnf", grammar))
        assert problem in str(raised.value), grammar
        assert not any(word in str(raised.value).lower() for word in ("lark", "lexeme", "parser")), grammar


HOSTILE = [
    'root ::= root root | "a"?',
    "root ::= " + "a " * 30_000 + '\na ::= "bcdef"{0,2000}',
    f'root ::= "{"a" * 60_000}"',
    f"root ::= [{'a' * 60_000}]",
    "root ::= a0\n" + "\n".join(f"a{n} ::= a{n + 1} a{n + 1}" for n in range(3000)) + '\na3000 ::= "x"?',
    "root ::= " + '((("a"{0,2000}){0,2000}){0,2000}){0,2000}',
]


def test_a_hostile_grammar_does_not_affect_the_next_one(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    for grammar in HOSTILE:
        try:
            grammars.compile(Grammar("gbnf", grammar))
        except UnsupportedGrammar as error:
            assert len(str(error)) < 400
        assert accepts(grammars, vocabulary, "gbnf", 'root ::= "a"', "a")


def test_only_a_recursive_grammar_is_not_a_regular_expression() -> None:
    assert parse_gbnf('root ::= a "b"\na ::= [c-d]?').regex() == r"(?:[\x{63}-\x{64}]){0,1}\x{62}"
    assert parse_gbnf('root ::= a\na ::= "b" a?').regex() is None
