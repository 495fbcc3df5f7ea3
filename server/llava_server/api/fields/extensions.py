"""The fields of vLLM, SGLang and llama.cpp that requests to all APIs that generate text can contain."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from llava_server.api.fields.output import TextFields
from llava_server.api.fields.prompt import PromptFields
from llava_server.api.fields.sampling import SamplingFields
from llava_server.api.fields.structured_output import GrammarFields

__all__ = ["ExtensionFields"]


class ExtensionFields(PromptFields, SamplingFields, TextFields, GrammarFields):
    """Fields that have the same name and meaning in all APIs that generate text."""

    cache_scope: Literal["tenant", "public"] | None = Field(
        None,
        description='Extension. With "tenant" (default), cached prompts and images are reused only for '
        'requests with the same API key. With "public", they are reused for all public requests, so other '
        "clients can infer from response times that the same content was sent before.",
    )
    priority: int | None = Field(
        None,
        ge=-1,
        le=1,
        description="vLLM extension. Scheduling priority: -1, 0 or 1. Requests with lower values are "
        "scheduled first. Values below the minimum of the API key, which is also the default, are raised to "
        "it.",
        examples=[0],
    )

    @property
    def extensions(self) -> dict[str, Any]:
        """The values of these fields by name, from which another request model can be created."""
        return {
            field.alias or name: getattr(self, name) for name, field in ExtensionFields.model_fields.items()
        }
