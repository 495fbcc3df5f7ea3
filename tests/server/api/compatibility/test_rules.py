"""A rule accepts neutral values, which have no effect. Other values cause an error that names the field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from llava_server.api.compatibility.queries import QUERIES
from llava_server.api.compatibility.rule import Neutral, Only, Rules, Unsupported
from llava_server.errors import ApiError
from vocabularies.status import RULES

from tests.server.api.compatibility.bodies import BODIES, with_field, with_fields
from tests.server.api.fields.rows import outcome
from tests.server.conftest import Stack

ANY = {"some": "value"}
_SEED = re.compile(r"seed=\d+")  # random, because no request sets it
EMPTY: tuple[Any, ...] = (None, "", [], {})


@pytest.mark.parametrize("route", BODIES)
def test_a_value_that_would_change_the_output_is_rejected(stack: Stack, route: str) -> None:
    for path, rule in RULES[route].by_path.items():
        if isinstance(rule, Neutral):
            continue
        body, location = with_field(BODIES[route], path, "other" if isinstance(rule, Only) else ANY)
        response = stack.http.post(route, json=body)
        error = response.json()["error"]
        assert response.status_code == 400, path
        assert (error["code"], error["param"]) == ("unsupported_parameter", location)
        assert location in error["message"] and rule.remedy in error["message"]
        is_anthropic = route.startswith("/v1/messages")
        assert ("type" in response.json()) == is_anthropic, "each dialect has its own error shape"


@pytest.mark.parametrize("route", [route for route in BODIES if route != "/v1/batches"])
def test_a_neutral_value_has_no_effect(stack: Stack, route: str) -> None:
    _, plain = outcome(stack, route, BODIES[route])
    for body in neutral_bodies(route):
        response, result = outcome(stack, route, body)
        assert response.status_code == 200, response.text
        assert _SEED.sub("", result) == _SEED.sub("", plain)


def neutral_bodies(route: str) -> list[dict[str, Any]]:
    """Return requests with neutral values for all fields that have a rule. They contain each value."""
    rules = {path: rule for path, rule in RULES[route].by_path.items() if not isinstance(rule, Only)}
    values = {
        path: (*EMPTY, ANY) if isinstance(rule, Neutral) else (*EMPTY, *rule.neutral)
        for path, rule in rules.items()
        if not path.endswith("*")
    }
    num_bodies = max(map(len, values.values()), default=0)
    return [
        with_fields(BODIES[route], {path: each[index % len(each)] for path, each in values.items()})
        for index in range(num_bodies)
    ]


def test_a_field_of_an_uploaded_form_is_rejected(stack: Stack) -> None:
    response = stack.http.post(
        "/v1/files",
        files={"file": ("a.jsonl", b"{}")},
        data={"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
    )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "expires_after")


def test_a_query_parameter_is_rejected_unless_its_value_is_neutral(stack: Stack) -> None:
    for operation, rules in QUERIES.items():
        path = operation.partition(" ")[2].replace("{response_id}", "resp_1")
        for name, rule in rules.by_path.items():
            error = stack.http.get(path, params={name: "other"}).json().get("error", {})
            assert (error.get("param") == name) == isinstance(rule, Unsupported), (operation, name)
    assert stack.http.get("/v1/files", params={"order": "desc"}).status_code == 200


def test_a_rule_applies_to_the_objects_that_its_path_selects() -> None:
    rules = Rules(
        {
            "a": Unsupported("Use b.", (1,)),
            "c[type=x].d": Unsupported("Omit it."),
            "e.known": Neutral("It has no effect."),
            "e.*": Unsupported("Use known."),
        }
    )
    accepted: list[Any] = [
        *({}, {"a": 1}, {"a": 1.0}, {"a": None}, {"a": []}, {"c": [{"type": "y", "d": 1}]}, {"c": "text"}),
        *({"c": {"type": "x"}}, {"e": {"known": 5}}, {"other": {"a": 5}}, [], "text", None),
    ]
    for body in accepted:
        rules.check(body)
    rejected: list[tuple[Any, str]] = [
        ({"a": True}, "a"),
        ({"a": 2}, "a"),
        ({"c": [{"type": "y"}, {"type": "x", "d": 1}]}, "c[1].d"),
        ({"c": {"d": 1}}, "c.d"),
        ({"e": {"known": 1, "new": 1}}, "e.new"),
    ]
    for body, param in rejected:
        with pytest.raises(ApiError) as raised:
            rules.check(body)
        assert raised.value.param == param


def test_the_message_names_the_field_the_accepted_values_and_the_alternative() -> None:
    with pytest.raises(ApiError, match=r'^a is not supported, except for the value 0 or "x"\. Use b\.$'):
        Rules({"a": Unsupported("Use b.", (0, "x"))}).check({"a": 2})
    with pytest.raises(ApiError, match=r"^a is 'z', but only 'x' is supported\. Use b\.$"):
        Rules({"a": Only("Use b.", ("x",))}).check({"a": "z"})
