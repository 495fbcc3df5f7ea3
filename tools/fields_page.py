"""Generate docs/reference/request-fields.md from the rules for request fields.

python tools/fields_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

from llava_server.api.compatibility.queries import QUERIES
from llava_server.api.compatibility.rule import Neutral, Only, Rule, Rules
from vocabularies.files import read
from vocabularies.sources import VOCABULARIES
from vocabularies.status import MODELS, RULES

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "request-fields.md"
_HEAD = """# Request fields of other servers

This page lists the request fields of OpenAI, Anthropic, vLLM, SGLang, llama.cpp and Ollama that this server
rejects or accepts without an effect. All of their other fields are supported, and `/docs` describes them. The
page is generated from `server/llava_server/api/compatibility` by `tools/fields_page.py`.

- **neutral**: any value is accepted, because the field cannot change the output.
- **rejected**: the request fails with status 400, and `param` names the field. null, empty values and the
  values listed as accepted are allowed.

`a.b` is a field of the object `a`, or of each object in the list `a`. `a[type=x].b` applies only to objects
of this type. `a.*` means all other fields of `a`,
and `a.**.b` the field `b` of all objects in `a`, at any depth. Fields of none of these APIs are ignored.
"""
_TOKENIZE = "\nThe rules for messages, tools and templates in chat requests apply as well.\n"
_CHAT = "/v1/chat/completions"
_GENERATING = (_CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")


def page() -> str:
    """Return the text of the page."""
    shared = _shared()
    sections = [_HEAD, _section("All routes that generate text", shared, _GENERATING)]
    for rules, routes in _routes_by_rules().items():
        described = (
            shared if routes[0] in _GENERATING else RULES[_CHAT].by_path if "/tokenize" in routes else {}
        )
        own = {path: rule for path, rule in rules.by_path.items() if described.get(path) != rule}
        if own:
            sections.append(_section(" and ".join(f"`{route}`" for route in routes), own, routes))
    for operation, rules in QUERIES.items():
        sections.append(_section(f"Query parameters of `{operation}`", rules.by_path, ()))
    return "\n".join(sections)


def _routes_by_rules() -> dict[Rules, tuple[str, ...]]:
    """Return the routes that have the same rules."""
    found: dict[Rules, tuple[str, ...]] = {}
    for route in MODELS:
        found[RULES[route]] = (*found.get(RULES[route], ()), route)
    return found


def _shared() -> dict[str, Rule]:
    """Return the rules that all routes that generate text have in common."""
    first, *others = (RULES[route].by_path for route in _GENERATING)
    return {path: rule for path, rule in first.items() if all(each.get(path) == rule for each in others)}


def _section(title: str, rules: dict[str, Rule], routes: tuple[str, ...]) -> str:
    note = _TOKENIZE if "/tokenize" in routes else ""
    lines = [f"## {title}\n{note}", "| field | status | remarks | in the API of |", "|---|---|---|---|"]
    for path, rule in sorted(rules.items()):
        lines.append(f"| `{path}` | {_status(rule)} | {_remarks(rule)} | {_servers(path, routes)} |")
    return "\n".join(lines) + "\n"


def _status(rule: Rule) -> str:
    return "neutral" if isinstance(rule, Neutral) else "rejected"


def _remarks(rule: Rule) -> str:
    if isinstance(rule, Neutral):
        return rule.reason
    values = rule.values if isinstance(rule, Only) else rule.neutral
    accepted = ", ".join(f"`{json.dumps(value)}`" for value in values)
    return f"{rule.remedy} Accepted: {accepted}." if accepted else rule.remedy


def _servers(path: str, routes: tuple[str, ...]) -> str:
    """Return the names of the vocabularies that contain a field."""
    one_rule = Rules({path: Neutral("")})
    found = [
        name
        for name in VOCABULARIES
        if any(one_rule.covering(each) for route in routes for each in read(name).get(route, ()))
    ]
    return ", ".join(found)


def main() -> None:
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
