"""A small random model with the vocabulary of the bundled model, and helpers for tests of grammars."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import llava_worker
import numpy as np
import torch
from llava_wire.messages.event import JobError
from llava_wire.messages.sampling_params import Grammar, GrammarKind
from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine.engine import Engine
from llava_worker.engine.structured_output.grammar import Matcher
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.language.hf_tokenizer import HFTokenizer
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import Precision

from tests.worker.checkpoints import IMAGE_TOKEN, write_checkpoint

TINY = Path(llava_worker.__file__).parent / "tiny"
SCHEMAS = Path(__file__).parents[3] / "data" / "schemas"
EOS_ID = 2
VOCAB_SIZE = 1216  # larger than the vocabulary of the tokenizer, as in padded checkpoints
MAX_TOKENS = 700


def published_schemas() -> dict[str, dict[str, Any]]:
    """Return the published schemas, keyed by file name."""
    index = json.loads((SCHEMAS / "index.json").read_text())
    return {entry["file"]: json.loads((SCHEMAS / entry["file"]).read_text()) for entry in index["schemas"]}


def is_valid(text: str, schema: Any) -> bool:
    """Return whether the text is JSON that matches the schema.

    Formats that the validator supports are checked too. Numbers are parsed as decimals, because the float 0.7
    is not a multiple of 0.1.
    """
    schema = json.loads(json.dumps(schema), parse_float=Decimal)
    validator = jsonschema.validators.validator_for(schema)
    return bool(
        validator(schema, format_checker=validator.FORMAT_CHECKER).is_valid(
            json.loads(text, parse_float=Decimal)
        )
    )


def make_model(folder: Path, dtype: torch.dtype = torch.float32) -> Llava:
    """Return a random model in float64.

    With this precision, rounding differences between batches never change a sampled token.
    """
    write_checkpoint(folder, text={"vocab_size": VOCAB_SIZE, "max_position_embeddings": 1024})
    cpu = torch.device("cpu")
    precision = Precision(str(dtype), dtype)
    model = Llava(read_config(folder), read_image_config(folder), precision=precision, device=cpu)
    load_weights(model, folder)
    return model


class Vocabulary:
    """The tokens of the bundled model, followed by the image token of the random model, which has no text."""

    def __init__(self) -> None:
        self.tokenizer = HFTokenizer(TINY)
        self.tokens = [self.token_bytes(token_id) for token_id in range(VOCAB_SIZE)]
        self.strips_leading_space = self.tokenizer.strips_leading_space

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == IMAGE_TOKEN else self.tokenizer.token_bytes(token_id)

    def text(self, token_ids: Iterable[int]) -> str:
        """Return the text of a complete output as a client would receive it."""
        detokenizer = Detokenizer(self)  # type: ignore[arg-type]
        return "".join(detokenizer.push(token_id) for token_id in token_ids) + detokenizer.flush()

    def ids(self, text: str) -> list[int]:
        """Return one token for each byte of the text."""
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]

    def closing_bias(self, bias: float = 12.0) -> tuple[tuple[int, float], ...]:
        """Return a bias toward closing tokens. Without it, the output of a random model rarely ends."""
        closing = {b'"', b"}", b"]", b":", b",", b"@", b"."}
        return tuple((index, bias) for index, text in enumerate(self.tokens) if text.strip() in closing)


@dataclass
class Generation:
    token_ids: list[int] = field(default_factory=list)
    outputs: list[StepOutput] = field(default_factory=list)

    @property
    def finish(self) -> str | None:
        return self.outputs[-1].finish

    @property
    def error(self) -> JobError | None:
        return self.outputs[-1].error


def generate(engine: Engine, sequences: Iterable[Sequence]) -> dict[str, Generation]:
    """Run the engine until all sequences have finished and return their outputs."""
    generated: dict[str, Generation] = {}
    for sequence in sequences:
        generated[sequence.seq_id] = Generation(list(sequence.output_ids))
        engine.add(sequence)
    while engine.num_sequences:
        for output in engine.step():
            generation = generated[output.seq_id]
            generation.outputs.append(output)
            if output.token_id is not None:
                generation.token_ids.append(output.token_id)
    engine.check()
    return generated


def open_grammars(vocabulary: Vocabulary, **options: Any) -> GrammarCache:
    return GrammarCache(
        lambda: vocabulary.tokens, [EOS_ID], begins_with_space=vocabulary.strips_leading_space, **options
    )


def slow_schema(number: int = 0) -> Grammar:
    """Return a JSON schema of 1 KB whose compilation takes seconds of CPU time."""
    patterns = [{"type": "string", "pattern": f".*{chr(97 + i)}.*{chr(98 + i)}.*"} for i in range(20)]
    schema = {"allOf": patterns, "minLength": number}
    return Grammar("json_schema", json.dumps(schema), param="response_format")


def allowed(matcher: Matcher) -> list[int]:
    """Return the tokens that the matcher allows next."""
    token_ids = allowed_or_failed(matcher)
    assert matcher.error is None
    return token_ids


def allowed_or_failed(matcher: Matcher) -> list[int]:
    """Return the tokens that the matcher allows next. If it has failed, the result is undefined."""
    row = np.zeros((VOCAB_SIZE + 31) // 32, dtype=np.int32)
    matcher.fill(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")[:VOCAB_SIZE]
    token_ids: list[int] = np.flatnonzero(bits).tolist()
    return token_ids


def accepts(
    grammars: GrammarCache, vocabulary: Vocabulary, kind: GrammarKind, source: str, text: str
) -> bool:
    """Return whether the grammar allows a complete output that a client would receive as ``text``."""
    matcher = grammars.compile(Grammar(kind, source)).start()
    matcher.advance(vocabulary.ids(f" {text}"))
    return matcher.error is None and EOS_ID in allowed(matcher)
