"""The ``options`` of a request, as defined by Ollama in ``api/types.go`` and ``docs/modelfile.mdx``.

Options that Ollama uses only to load a model have no effect here, because workers have already loaded it. As
in Ollama, unknown options are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from llava_server.api.chat.request import MAX_TOKENS
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.stop import StopStrings
from llava_server.api.fields.unsupported import Unsupported

__all__ = ["OllamaOptions"]

_WHOLE_CONTEXT = (-1, 64)  # 64 is Ollama's default
_SEED_RANDOM = -1
_ONE_TOKEN = 1e-6  # with a probability of 0, llama.cpp considers only one token, and so does this value
_NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_INTEGER = BeforeValidator(_as_integer)  # Ollama also accepts 40.0
Limit = Annotated[int, Field(ge=-2, le=MAX_TOKENS, json_schema_extra={"not": {"const": 0}}), _INTEGER]
TokenCount = Annotated[int, Field(ge=-1, le=MAX_TOKENS), _INTEGER]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), _INTEGER]

_NO_EFFECT: Any = Field(
    None,
    description="Accepted for compatibility, but ignored. The worker's settings determine how the model is "
    "loaded.",
    examples=[1],
)
_MIROSTAT = "Use temperature, top_k, top_p and min_p."


class OllamaOptions(RequestModel):
    """Sampling parameters. Defaults are the same as in Ollama."""

    num_predict: Limit | None = Field(
        None,
        description="Maximum number of output tokens. -1 (default) and -2 limit the output only by the "
        "context length.",
        examples=[128],
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Sampling temperature. 0 selects the most likely token. Defaults to 0.8.",
        examples=[0],
    )
    top_k: TokenCount | None = Field(
        None,
        description="Sample only from the top_k most likely tokens. 0 or -1 disables the limit. Defaults to "
        "40.",
        examples=[40],
    )
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Sample only from the smallest set of most likely tokens whose cumulative probability "
        "reaches top_p. Defaults to 0.9.",
        examples=[0.9],
    )
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Minimum probability for a token to be considered, relative to the probability of the "
        "most likely token. Defaults to 0.",
        examples=[0.05],
    )
    typical_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Sample only from the smallest set of the most typical tokens whose cumulative "
        "probability reaches typical_p (locally typical sampling). Defaults to 1 (disabled).",
        examples=[0.95],
    )
    seed: Seed | None = Field(
        None,
        description="Seed for sampling. The same request with the same seed produces the same output. -1 "
        "(default) selects a random seed.",
        examples=[7],
    )
    stop: StopStrings | None = Field(
        None,
        description="Up to 4 strings of 1 to 256 characters each. Generation stops at the first match, which "
        "is not included in the output.",
        examples=[["\n"]],
    )
    repeat_penalty: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Positive logits of tokens that occur in the prompt or output are divided by this value, "
        "and negative logits are multiplied by it. Defaults to 1 (disabled).",
        examples=[1.1],
    )
    repeat_last_n: TokenCount | None = Field(
        None,
        description="Number of tokens that the penalties consider. 0 disables the penalties. The penalties "
        "always consider the whole context, so if a penalty is set, the only other accepted values are -1 "
        "and 64 (Ollama's default).",
        examples=[-1],
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Value to subtract from the logits of tokens that already occur in the output. Defaults "
        "to 0.",
        examples=[0],
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Value to subtract from a token's logit for every occurrence of the token in the output "
        "so far. Defaults to 0.",
        examples=[0],
    )
    mirostat: Annotated[Any, Unsupported(_MIROSTAT, (0,))] = None
    mirostat_tau: Any = Field(
        None, description="Accepted, but ignored. It has no effect without mirostat.", examples=[5]
    )
    mirostat_eta: Any = Field(
        None, description="Accepted, but ignored. It has no effect without mirostat.", examples=[0.1]
    )
    tfs_z: Annotated[Any, Unsupported("Use top_p or min_p.", (1,))] = None
    penalize_newline: Annotated[
        Any, Unsupported("The penalties apply to all tokens, including line breaks.", (True,))
    ] = None
    num_ctx: Any = Field(
        None,
        description="Accepted for compatibility, but ignored. The context length is a setting of the worker. "
        "/api/show returns it.",
        examples=[4096],
    )
    num_keep: Any = Field(
        None,
        description="Accepted for compatibility, but ignored. The server never removes tokens from the "
        "prompt.",
        examples=[4],
    )
    num_batch: Any = _NO_EFFECT
    num_gpu: Any = _NO_EFFECT
    main_gpu: Any = _NO_EFFECT
    num_thread: Any = _NO_EFFECT
    numa: Any = _NO_EFFECT
    low_vram: Any = _NO_EFFECT
    f16_kv: Any = _NO_EFFECT
    logits_all: Any = _NO_EFFECT
    vocab_only: Any = _NO_EFFECT
    embedding_only: Any = _NO_EFFECT
    use_mmap: Any = _NO_EFFECT
    use_mlock: Any = _NO_EFFECT
    draft_num_predict: Any = _NO_EFFECT

    @property
    def sampling(self) -> dict[str, Any]:
        """The same parameters as fields of a chat request, with Ollama's defaults."""
        limit = -1 if self.num_predict is None else self.num_predict
        return {
            "max_tokens": None if limit < 0 else limit,
            "temperature": 0.8 if self.temperature is None else self.temperature,
            "top_k": 40 if self.top_k is None else self.top_k,
            "top_p": 0.9 if self.top_p is None else max(self.top_p, _ONE_TOKEN),
            "min_p": self.min_p,
            "typical_p": None if self.typical_p is None else max(self.typical_p, _ONE_TOKEN),
            "seed": None if self.seed == _SEED_RANDOM else self.seed,
            "stop": self.stop,
            **({} if self.repeat_last_n == 0 else self._penalties),
        }

    @property
    def _penalties(self) -> dict[str, float]:
        return {
            "repetition_penalty": 1.0 if self.repeat_penalty is None else self.repeat_penalty,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
        }

    @model_validator(mode="after")
    def _check_values(self) -> OllamaOptions:
        if self.num_predict == 0:
            raise invalid_value(
                "options.num_predict",
                "options.num_predict is 0, but the output has at least one token. Set it to 1 or more, or to "
                "-1 for no limit.",
            )
        has_penalty = self._penalties != _NO_PENALTIES
        if has_penalty and self.repeat_last_n not in (None, 0, *_WHOLE_CONTEXT):
            raise invalid_value(
                "options.repeat_last_n",
                f"options.repeat_last_n is {self.repeat_last_n}, but penalties always consider the whole "
                "context. Set it to -1, or to 0 to disable the penalties.",
            )
        return self
