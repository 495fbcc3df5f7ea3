"""Compare the compile time, mask time, memory use and coverage of llguidance and xgrammar.

    python -m bench.engine.grammars                          llguidance only
    python -m bench.engine.grammars --xgrammar-python PATH   also xgrammar, from another environment

The results are written to ``bench/results/grammars.json``. Each library runs in its own process. Both
libraries use the same two vocabularies, which are as large as those of Llama (32,064 tokens) and Qwen2
(152,064 tokens). A walk repeatedly samples a token that the mask allows, until the output is complete or has
``STEPS`` tokens. Each step computes one mask and accepts one token. All times are CPU times, which other
programs on the machine hardly affect.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMAS = Path(__file__).parents[2] / "tests" / "data" / "schemas"
VOCABULARIES = {"32k": 32_064, "152k": 152_064}
STEPS = 150
EOS = 0
_CLOSING = (b'"', b"}", b"]", b'"}', b":", b",")

# Schemas that a library should reject with an error message instead of misinterpreting them.
HOSTILE = {
    "false": "false",
    "no integer": '{"type": "integer", "minimum": 5, "maximum": 3}',
    "two types": '{"allOf": [{"type": "string"}, {"type": "integer"}]}',
    "needs itself": '{"$ref": "#"}',
    "uniqueItems": '{"type": "array", "uniqueItems": true}',
    "contains": '{"type": "array", "contains": {"type": "string"}}',
    "not": '{"not": {"type": "string"}}',
    "if": '{"if": {"type": "string"}, "then": {"type": "string"}}',
    "dependentRequired": '{"type": "object", "dependentRequired": {"a": ["b"]}}',
    "propertyNames": '{"type": "object", "propertyNames": {"pattern": "^a"}}',
    "look-ahead": '{"type": "string", "pattern": "(?=a)b"}',
    "unknown format": '{"type": "string", "format": "made-up"}',
    "external $ref": '{"$ref": "https://example.com/other.json"}',
    "multipleOf": '{"type": "integer", "multipleOf": 7}',
    "nested 200 deep": '{"items":' * 200 + "{}" + "}" * 200,
    "a long repeat": '{"type": "string", "pattern": "^([a-z]{1,1000}){1,1000}$"}',
    "two repeats": '{"type": "string", "pattern": "^(a?){500}a{500}$"}',
    "the least integer": '{"enum": [-9223372036854775808]}',
}


def vocabulary(size: int) -> list[bytes]:
    """Return EOS, all bytes, common JSON fragments, and random words with and without a leading space."""
    pieces: dict[bytes, None] = {b"<eos>": None}
    pieces |= dict.fromkeys(bytes([value]) for value in range(256))
    pairs = ['{"', '":', '", "', '"}', '": "', "},", "],", "[{", "\n  ", "true", "false", "null"]
    pieces |= dict.fromkeys(pair.encode() for pair in pairs)
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./"
    while len(pieces) < size:
        word = "".join(generator.choices(letters, k=generator.randint(2, 8)))
        pieces[(" " * generator.randint(0, 1) + word).encode()] = None
    return list(pieces)[:size]


class Llguidance:
    """llguidance, wrapped in the interface that the benchmark uses for both libraries."""

    def __init__(self, tokens: list[bytes]) -> None:
        import llguidance

        class Vocabulary:
            eos_token_id, bos_token_id, special_token_ids = EOS, None, (EOS,)

            def __init__(self) -> None:
                self.tokens = [b"", *tokens[1:]]
                self._ids = {token: token_id for token_id, token in enumerate(tokens)}

            def __call__(self, text: bytes) -> list[int]:
                """Tokenize greedily: take the longest matching token at each position."""
                token_ids, start = [], 0
                while start < len(text):
                    ends = range(min(start + 9, len(text)), start, -1)
                    end = next(end for end in ends if text[start:end] in self._ids)
                    token_ids.append(self._ids[text[start:end]])
                    start = end
                return token_ids

        self._library = llguidance
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(Vocabulary()), n_vocab=len(tokens)
        )

    def compile(self, schema: str) -> Any:
        grammar = self._library.LLMatcher.grammar_from_json_schema(schema)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error() or matcher.get_grammar_warnings():
            raise ValueError(matcher.get_error() or matcher.get_grammar_warnings()[0])
        return matcher

    def start(self, compiled: Any) -> Any:
        return compiled.deep_copy()

    def mask(self, matcher: Any, out: NDArray[np.int32]) -> None:
        matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        if matcher.is_error():
            raise ValueError(matcher.get_error())

    def accept(self, matcher: Any, token_id: int) -> None:
        if not matcher.consume_token(token_id):
            raise ValueError(matcher.get_error())


class Xgrammar:
    """xgrammar, wrapped in the same interface as ``Llguidance``."""

    def __init__(self, tokens: list[bytes]) -> None:
        import torch
        import xgrammar

        self._library, self._torch = xgrammar, torch
        info = xgrammar.TokenizerInfo([b"", *tokens[1:]], xgrammar.VocabType.RAW, stop_token_ids=[EOS])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema: str) -> Any:
        return self._compiler.compile_json_schema(schema, strict_mode=False)

    def start(self, compiled: Any) -> Any:
        return self._library.GrammarMatcher(compiled)

    def mask(self, matcher: Any, out: NDArray[np.int32]) -> None:
        matcher.fill_next_token_bitmask(self._torch.from_numpy(out[None]))

    def accept(self, matcher: Any, token_id: int) -> None:
        if not matcher.accept_token(token_id):
            raise ValueError(f"Token {token_id} was not accepted.")


def walk(library: Any, compiled: Any, tokens: list[bytes], seed: int) -> tuple[bytes, bool, list[float]]:
    """Return the generated text, whether it is complete, and the duration of each step in seconds."""
    generator = random.Random(seed)
    matcher, out = library.start(compiled), np.zeros((len(tokens) + 31) // 32, dtype=np.int32)
    closing = np.array([index for index, token in enumerate(tokens[:300]) if token in _CLOSING])
    text, times = b"", []
    for _ in range(STEPS):
        began = time.process_time()
        library.mask(matcher, out)
        took = time.process_time() - began
        allowed = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little")[: len(tokens)])
        token_id = EOS if EOS in allowed else _pick(generator, allowed, closing)
        if token_id == EOS:
            return text, True, times
        began = time.process_time()
        library.accept(matcher, token_id)
        times.append(took + time.process_time() - began)
        text += tokens[token_id]
    return text, False, times


def _pick(generator: random.Random, allowed: NDArray[np.int64], closing: NDArray[np.int64]) -> int:
    """Sample an allowed token. Half of the time, prefer closing tokens, so that walks terminate."""
    closing_allowed = allowed[np.isin(allowed, closing)]
    candidates = closing_allowed if len(closing_allowed) and generator.random() < 0.5 else allowed
    return int(candidates[generator.randrange(len(candidates))])


def measure(make: Callable[[list[bytes]], Any], size: int) -> dict[str, Any]:
    import jsonschema

    tokens = vocabulary(size)
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    library = make(tokens)
    open_s, compile_s, token_s = time.process_time() - began, [], []
    invalid, rejected, num_valid, num_incomplete = [], [], 0, 0
    for path in sorted(SCHEMAS.glob("*-*.json")):
        text = path.read_text()
        began = time.process_time()
        try:
            compiled = library.compile(text)
        except (ValueError, RuntimeError) as error:
            rejected.append(f"{path.stem}: {str(error)[:120]}")
            continue
        compile_s.append(time.process_time() - began)
        for seed in range(2):
            try:
                output, is_complete, times = walk(library, compiled, tokens, seed)
            except ValueError as error:
                invalid.append(f"{path.stem}: {str(error).splitlines()[0][:120]}")
                continue
            token_s += times
            if not is_complete:
                num_incomplete += 1
                continue
            try:
                exact = {"parse_float": Decimal}  # in floating point, 0.7 is not a multiple of 0.1
                jsonschema.validate(json.loads(output, **exact), json.loads(text, **exact))
                num_valid += 1
            except (jsonschema.ValidationError, ValueError) as error:
                invalid.append(f"{path.stem}: {str(error).splitlines()[0][:120]}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "open_ms": round(open_s * 1e3, 1),
        "compile_ms": _quantiles(compile_s),
        "mask_and_token_us": {name: round(ms * 1e3, 1) for name, ms in _quantiles(token_s).items()},
        "num_masks": len(token_s),
        "memory_mb": round((peak - before) / 1024, 1),
        "answers_valid": num_valid,
        "answers_cut": num_incomplete,
        "answers_wrong": invalid,
        "schemas_refused": rejected,
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(ordered) * 1e3, 4),
        "p99": round(ordered[int(len(ordered) * 0.99)] * 1e3, 4),
        "most": round(ordered[-1] * 1e3, 4),
    }


def classify(make: Callable[[list[bytes]], Any], name: str) -> str:
    """Return a description of how the library handles a hostile schema."""
    tokens = vocabulary(2000)
    library = make(tokens)
    began = time.process_time()
    try:
        compiled = library.compile(HOSTILE[name])
        text, is_complete, _ = walk(library, compiled, tokens, 1)
    except (ValueError, RuntimeError) as error:
        return (
            f"rejected after {(time.process_time() - began) * 1e3:.0f} ms: {str(error).splitlines()[0][:100]}"
        )
    took = (time.process_time() - began) * 1e3
    return f"accepted in {took:.0f} ms, {'complete' if is_complete else 'incomplete'}: {text[:60]!r}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--xgrammar-python", help="Python interpreter of an environment with xgrammar")
    parser.add_argument("--part", nargs=2, help="internal: the library, and a vocabulary or hostile schema")
    options = parser.parse_args()
    makers: dict[str, Callable[[list[bytes]], Any]] = {"llguidance": Llguidance, "xgrammar": Xgrammar}
    if options.part:
        library, what = options.part
        size = VOCABULARIES.get(what)
        part = measure(makers[library], size) if size else classify(makers[library], what)
        print(json.dumps(part))
        return
    from bench.record import write_record

    interpreters = {"llguidance": sys.executable, "xgrammar": options.xgrammar_python}
    results = {
        library: {
            **{name: _run(python, library, name) for name in VOCABULARIES},
            "hostile": {name: _run(python, library, name) for name in HOSTILE},
        }
        for library, python in interpreters.items()
        if python
    }
    print(json.dumps(results, indent=1))
    write_record("grammars", results, packages=("llguidance", "xgrammar", "jsonschema"))


def _run(python: str, library: str, what: str) -> Any:
    command = [python, "-m", "bench.engine.grammars", "--part", library, what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "timed out after 300 s"
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1][:200]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
