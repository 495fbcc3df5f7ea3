"""Strings that end the output."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag

from llava_server.api.fields.base import text_or_list

__all__ = ["StopFields", "StopStrings"]

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = Annotated[
    Annotated[StopString, Tag("<plain>")]
    | Annotated[list[StopString], Field(max_length=4, fail_fast=True), Tag("<list>")],
    Discriminator(text_or_list),
]


class StopFields(BaseModel):
    """OpenAI's field for stop strings."""

    stop: StopStrings | None = Field(
        None,
        description="Up to 4 strings of 1 to 256 characters each. Generation stops at the first match, "
        "which is not included in the output unless include_stop_str_in_output is true.",
        examples=[["\n"]],
    )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
