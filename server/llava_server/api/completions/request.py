"""The request of /v1/completions: prompts that are taken as they stand, without the model's template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from llava_server.api.chat.request import MAX_TOKENS, GenerationRequest
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.sampling import TokenId
from llava_server.api.fields.structured_output import StructuredOutputFields
from llava_server.api.fields.unsupported import Unsupported

__all__ = ["CompletionRequest"]

_MAX_ANSWERS = 64
_MAX_PROMPT_TOKENS = 1 << 20
_DEFAULT_TOKENS = 16


def _prompt_kind(value: Any) -> str:
    if isinstance(value, str):
        return "<text>"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "<lists>"
    return "<tokens>" if isinstance(first, int) and not isinstance(first, bool) else "<texts>"


Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=_MAX_PROMPT_TOKENS)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=_MAX_ANSWERS), Tag("<texts>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=_MAX_ANSWERS), Tag("<lists>")],
    Discriminator(_prompt_kind),
]


class CompletionRequest(RequestModel, GenerationRequest, StructuredOutputFields):
    """Texts to be gone on with."""

    prompt: Prompt = Field(
        description="A text, a list of texts, a list of token ids, or a list of such lists; with n at most "
        f"{_MAX_ANSWERS} answers in all. The begin mark is put before texts, and nothing else.",
        examples=["The picture shows"],
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description=f"Tokens of an answer at most; default {_DEFAULT_TOKENS}, as OpenAI has it. 0 goes with "
        "echo only: the prompt comes back, with logprobs how likely it is, and nothing is added.",
        examples=[64],
    )
    echo: bool | None = Field(
        None,
        description="Begin each answer with its prompt; logprobs then tell of the prompt's tokens, too, null "
        "for the first, and all of the prompt is computed, whatever the cache has of it.",
        examples=[True],
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=5,
        description="Tell each token's log-probability and those of so many likeliest ones; 0 to 5. With "
        "echo those of the prompt, too.",
        examples=[1],
    )
    suffix: Annotated[
        Any, Unsupported("this model writes what follows a text, not what stands within one", ("",))
    ] = None
    best_of: Annotated[Any, Unsupported("use n and choose among the answers", (1,))] = None
    prompt_logprobs: Annotated[Any, Unsupported("leave it out", (0, False))] = None
    add_special_tokens: Annotated[
        Any, Unsupported("send the prompt as tokens, with those that you want", (True,))
    ] = None
    guided_grammar: Annotated[
        Any, Unsupported("use response_format with a JSON schema, guided_regex or guided_choice")
    ] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One for each answer, or for ``n`` of them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token_id for token_id in self.prompt if isinstance(token_id, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @property
    def max_output_tokens(self) -> int:
        """Tokens of an answer at most."""
        return _DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are told; None without logprobs."""
        return self.logprobs

    @model_validator(mode="after")
    def _check_fields(self) -> CompletionRequest:
        num_answers = len(self.prompts) * self.num_choices
        if num_answers > _MAX_ANSWERS:
            raise invalid_value(
                "n",
                f"{len(self.prompts)} prompts with {self.num_choices} answers each are {num_answers}; "
                f"the limit is {_MAX_ANSWERS}",
            )
        if self.max_tokens == 0 and not self.echo:
            raise invalid_value("max_tokens", "max_tokens is 0, which goes with echo only; give 1 or more")
        self.check_min_tokens(self.max_output_tokens)
        return self
