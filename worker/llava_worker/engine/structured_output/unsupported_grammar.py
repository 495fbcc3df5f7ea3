"""The error for a grammar that cannot be enforced."""

from __future__ import annotations

from llava_wire.messages.sampling_params import GrammarKind

__all__ = ["UnsupportedGrammar"]

_NAMES: dict[GrammarKind, str] = {
    "json_schema": "JSON schema",
    "json_object": "JSON schema",
    "gbnf": "grammar",
    "tools": "grammar of the tools",
}


class UnsupportedGrammar(ValueError):
    """Raised for a grammar that cannot be enforced.

    ``param`` and ``owner`` identify the part of the request, if it is not the whole grammar: the name of the
    field, and a phrase such as "JSON schema of the function 'f'".
    """

    def __init__(self, reason: str, *, param: str = "", owner: str = "") -> None:
        super().__init__(reason)
        self.param = param
        self.owner = owner

    def client_message(self, kind: GrammarKind) -> str:
        """Return the error message for the client. ``kind`` is the kind of grammar that the client sent."""
        return f"The {self.owner or _NAMES.get(kind, kind)} cannot be enforced: {self}."
