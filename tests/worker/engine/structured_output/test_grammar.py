"""Tests of which tokens grammars allow, and of grammars that are not supported."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llava_wire.messages.sampling_params import Grammar, GrammarKind
from llava_worker.engine.structured_output.grammar import Matcher
from llava_worker.engine.structured_output.grammar_cache import MAX_TEXT_BYTES, GrammarCache
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar
from llava_worker.language.tokenizer import ByteTokenizer

from tests.worker.engine.structured_output.grammar_kit import (
    EOS_ID,
    VOCAB_SIZE,
    Vocabulary,
    accepts,
    allowed,
    allowed_or_failed,
    open_grammars,
    slow_schema,
)

OBJECT = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
)


def walk(matcher: Matcher, rng: random.Random) -> list[int]:
    """Return a random output without its end token."""
    output_ids: list[int] = []
    while True:
        token_ids = allowed(matcher)
        if EOS_ID in token_ids and (len(token_ids) == 1 or rng.random() < 0.3):
            return output_ids
        output_ids.append(rng.choice([token_id for token_id in token_ids if token_id != EOS_ID]))
        matcher.advance(output_ids)


REGEXES = [
    r"\d{3}-\d{4}", r"a|ab|abc", r"(a|ab)(c|bcd)", r"[^/]/[/]", r"^x?y{2,3}$", r"é+", r"[a-z]{2}\.", "a\nb",
    r" a| b", r"\$\d\.\d\d", r"a\\$", r"(?i)ok", r"[\d]\D?", r"\x41\n?", r"#[xy]?\t",
]  # fmt: skip


def test_a_regular_expression_matches_the_whole_output(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    for pattern in REGEXES:
        rng = random.Random(0)
        grammar = grammars.compile(Grammar("regex", pattern))
        texts = {vocabulary.text(walk(grammar.start(), rng)) for _ in range(20)}
        assert all(re.fullmatch(pattern, text) for text in texts), (pattern, texts)
        assert not accepts(grammars, vocabulary, "regex", pattern, "no match"), pattern


def test_the_whole_output_is_one_of_the_choices(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    choices = ["a", "ab", "b c", '"q"', "日本", "x\ny", "(.*)", "\\", " led"]
    text = json.dumps(choices)
    rng = random.Random(0)
    grammar = grammars.compile(Grammar("choice", text))
    assert {vocabulary.text(walk(grammar.start(), rng)) for _ in range(300)} == set(choices)
    assert not accepts(grammars, vocabulary, "choice", text, "abc")
    assert not accepts(grammars, vocabulary, "choice", text, "led")


def test_json_allows_only_common_white_space(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    for output_ids in ('{"a":1}', '{"a": 1}', '{\n  "a": 1\n}', '{ "a" : 1 }', '{\r\n\t"a":1}'):
        assert accepts(grammars, vocabulary, "json_schema", OBJECT, output_ids)
    for output_ids in ('{  "a":1}', '{"a":\n\n1}', ' {"a":1}', '{"a":1}\n', '{"a":1', '{"a":1}}', '{"b":1}'):
        assert not accepts(grammars, vocabulary, "json_schema", OBJECT, output_ids)


def test_json_object_allows_any_object(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    for output_ids in ("{}", '{"a": [1, null, "é"]}'):
        assert accepts(grammars, vocabulary, "json_object", "", output_ids)
    for output_ids in ("[]", "1", '"a"', "null", ""):
        assert not accepts(grammars, vocabulary, "json_object", "", output_ids)


def test_special_tokens_are_never_allowed_and_end_tokens_only_at_the_end(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    specials = {token_id for token_id, text in enumerate(vocabulary.tokens) if not text}
    assert len(specials) > 5 and EOS_ID in specials
    matcher = grammars.compile(Grammar("regex", "(?s).{0,3}")).start()
    output_ids: list[int] = []
    for token_id in vocabulary.ids(" abc"):
        assert specials.intersection(allowed(matcher)) <= ({EOS_ID} if output_ids else set())
        output_ids.append(token_id)
        matcher.advance(output_ids)
    assert allowed(matcher) == [EOS_ID]


def test_a_character_of_several_byte_tokens_is_allowed_byte_by_byte(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    output_ids = walk(grammars.compile(Grammar("regex", "日[本月]")).start(), random.Random(0))
    assert [len(vocabulary.tokens[token_id]) for token_id in output_ids] == [1] * 7
    assert vocabulary.text(output_ids) in ("日本", "日月")


def test_tokens_that_do_not_match_are_an_error_of_one_matcher_only(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    grammar = grammars.compile(Grammar("json_schema", OBJECT))
    broken, whole = grammar.start(), grammar.start()
    broken.advance(vocabulary.ids(" ["))
    whole.advance(vocabulary.ids(" {"))
    assert broken.error is not None
    assert whole.error is None and allowed(whole)


def test_a_matcher_depends_only_on_the_consumed_tokens(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    grammar = grammars.compile(Grammar("json_schema", OBJECT))
    output_ids = vocabulary.ids(' {"a": 12}')
    single, whole = grammar.start(), grammar.start()
    for end in range(len(output_ids) + 1):
        single.advance(output_ids[:end])
    whole.advance(output_ids)
    assert allowed(single) == allowed(whole) == [EOS_ID]


def test_no_space_is_added_for_a_tokenizer_that_retains_leading_spaces() -> None:
    tokenizer = ByteTokenizer()
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(VOCAB_SIZE)]
    opened = GrammarCache(lambda: tokens, [tokenizer.eos_token_id], cpu_s=60.0)
    matcher = opened.compile(Grammar("regex", "[ab]")).start()
    assert allowed(matcher) == [ord("a"), ord("b")]
    opened.close()


UNSUPPORTED: list[tuple[GrammarKind, Any, str]] = [
    ("json_schema", {"not": {}}, "not"),
    ("json_schema", {"uniqueItems": True}, "uniqueItems"),
    ("json_schema", {"items": {"contains": {}}}, "contains"),
    ("json_schema", {"if": {}, "then": {}}, "if"),
    ("json_schema", {"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ("json_schema", {"type": "string", "format": "made-up"}, "made-up"),
    ("json_schema", {"$ref": "https://example.com/x.json"}, "example.com"),
    ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look"),
    ("json_schema", {"properties": {"a": {"divisibleBy": 3}}}, "divisibleBy"),
    ("json_schema", {"allOf": [{"x-guidance": {"lenient": True}, "not": {}}]}, "x-guidance"),
    ("json_schema", {"$defs": {"a": {"minimum": 3, "exclusiveMinimum": True}}}, "exclusiveMinimum"),
    ("json_schema", {"enum": [-(2**63)]}, "2**53"),
    ("json_schema", {"properties": {"a": False}, "required": ["a"], "type": "object"}, "'a'"),
    ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5)"),
    ("json_schema", {"allOf": [{"type": "string"}, {"type": "null"}]}, "incompatible"),
    ("json_schema", {"$ref": "#"}, "no text matches it"),
    ("json_schema", {"type": "string", "pattern": "^(a?){500}a{500}$"}, "too many"),
    ("json_schema", {"title": "x" * MAX_TEXT_BYTES}, str(MAX_TEXT_BYTES)),
    ("regex", "(a", "unclosed"),
    ("regex", "a\\", "backslash"),
    ("regex", "(?=a)a", "look"),
    ("regex", r"(a)\1", "backreferences"),
]


def test_an_unsupported_grammar_is_an_error_with_the_reason(grammars: GrammarCache) -> None:
    for kind, source, reason in UNSUPPORTED:
        with pytest.raises(UnsupportedGrammar) as raised:
            grammars.compile(Grammar(kind, source if isinstance(source, str) else json.dumps(source)))
        message = str(raised.value)
        assert reason in message
        assert "\n" not in message and len(message) < 400, message


@pytest.mark.parametrize(
    "rules",
    [
        's ::= s s | s s s | [a-z ] | ""',
        "s ::= s s | [a-z ] | s s s s",
        "s ::= s s | s [a-z ] s | [a-z ] s | s [a-z ] | [a-z ]",
    ],
)
def test_an_ambiguous_grammar_fails_before_its_bitmasks_become_expensive(
    grammars: GrammarCache, rules: str
) -> None:
    matcher = grammars.compile(Grammar("gbnf", f"root ::= s\n{rules}")).start()
    rng = random.Random(0)
    output_ids: list[int] = []
    while len(output_ids) < 100:
        token_ids = [token_id for token_id in allowed_or_failed(matcher) if token_id != EOS_ID]
        if matcher.error:
            break
        output_ids.append(rng.choice(token_ids))
        matcher.advance(output_ids)
    assert "Too many items (limit 3000" in (matcher.error or "")


def test_a_recursive_grammar_that_is_not_ambiguous_has_outputs_of_any_length(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    rules = 'root ::= e\ne ::= t ("+" t)*\nt ::= f ("*" f)*\nf ::= [a-z] | "(" e ")"'
    text = "(" * 50 + "a" + ")" * 50 + "+(b*c)" * 500
    assert accepts(grammars, vocabulary, "gbnf", rules, text)


def test_names_and_values_are_not_keywords(grammars: GrammarCache) -> None:
    schemas: list[dict[str, Any]] = [
        {"properties": {"divisibleBy": {"type": "string"}, "not": {}, "x-guidance": {}}},
        {"title": "t", "$comment": "c", "examples": [1], "x-order": 3, "enum": [{"not": 1}, 2**53]},
    ]
    for schema in schemas:
        grammars.compile(Grammar("json_schema", json.dumps(schema)))


def test_a_grammar_that_crashes_the_sandbox_does_not_affect_the_next_one(
    grammars: GrammarCache,
) -> None:
    chain = "\n".join(f"a{index} ::= a{index + 1} a{index + 1}" for index in range(3000))
    deadly = Grammar("gbnf", f'root ::= a0\n{chain}\na3000 ::= "x"?')
    for index in range(2):
        with pytest.raises(UnsupportedGrammar, match="crashes the grammar library"):
            grammars.compile(deadly)
        grammars.compile(Grammar("choice", f'["c{index}"]'))


def test_a_grammar_that_takes_too_long_is_rejected(vocabulary: Vocabulary) -> None:
    opened = open_grammars(vocabulary, cpu_s=0.2)
    with pytest.raises(UnsupportedGrammar, match=r"more than 0\.2 seconds of CPU time"):
        opened.compile(slow_schema())
    opened.compile(Grammar("choice", '["a"]'))
    opened.close()


def test_other_grammars_are_compiled_and_found_while_a_slow_one_is_compiled(vocabulary: Vocabulary) -> None:
    opened = open_grammars(vocabulary, cpu_s=2.0)
    known = opened.compile(Grammar("choice", '["a"]'))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(opened.compile, slow_schema())
        assert opened.find(Grammar("choice", '["a"]')) is known
        opened.compile(Grammar("choice", '["b"]'))
        assert not slow.done()
        assert isinstance(slow.exception(), UnsupportedGrammar)
    opened.close()


def test_concurrent_requests_for_a_grammar_share_one_compilation(vocabulary: Vocabulary) -> None:
    num_reads = 0

    def read_tokens() -> list[bytes]:
        nonlocal num_reads
        num_reads += 1
        return vocabulary.tokens

    opened = GrammarCache(read_tokens, [EOS_ID], cpu_s=60.0)
    with ThreadPoolExecutor(4) as pool:
        compiled = set(pool.map(opened.compile, [Grammar("json_schema", OBJECT)] * 4))
    assert len(compiled) == 1
    assert num_reads == 2  # one library in this process and one sandbox
    opened.close()


def test_a_rejection_is_cached_for_a_short_time(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_grammars(vocabulary, cpu_s=0.2)
    assert opened.find(slow_schema()) is None
    with pytest.raises(UnsupportedGrammar) as first:
        opened.compile(slow_schema())
    with pytest.raises(UnsupportedGrammar) as second:
        opened.find(slow_schema())
    assert str(first.value) == str(second.value)
    monkeypatch.setattr("llava_worker.engine.structured_output.grammar_cache._REJECTION_S", 0.0)
    assert opened.find(slow_schema()) is None
    opened.close()


def test_a_grammar_is_compiled_once_and_the_oldest_are_evicted(vocabulary: Vocabulary) -> None:
    opened = open_grammars(vocabulary, cpu_s=60.0)
    first = opened.compile(Grammar("choice", '["a"]'))
    assert opened.compile(Grammar("choice", '["a"]')) is first
    for index in range(64):
        opened.compile(Grammar("choice", json.dumps([f"b{index}"])))
    assert opened.compile(Grammar("choice", '["b63"]')) is opened.compile(Grammar("choice", '["b63"]'))
    assert opened.compile(Grammar("choice", '["a"]')) is not first
    opened.close()


def test_a_model_without_an_end_token_supports_no_grammar() -> None:
    with pytest.raises(UnsupportedGrammar, match="no end-of-sequence token"):
        GrammarCache(lambda: [b"a"], []).compile(Grammar("json_object"))
