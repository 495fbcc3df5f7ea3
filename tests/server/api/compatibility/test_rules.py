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
from tests.server.document_check import error_of

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
        error = error_of(response)
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


def test_a_query_parameter_is_rejected_unless_its_value_is_neutral(stack: Stack) -> None:
    response_id = stack.http.post("/v1/responses", json=BODIES["/v1/responses"]).json()["id"]
    for operation, rules in QUERIES.items():
        path = operation.partition(" ")[2].replace("{response_id}", response_id)
        plain = stack.http.get(path)
        for name, rule in rules.by_path.items():
            assert not isinstance(rule, Only)
            for value in ("other",) if isinstance(rule, Neutral) else rule.neutral:
                assert stack.http.get(path, params={name: value}).json() == plain.json(), (operation, name)
            if isinstance(rule, Unsupported):
                rejected = stack.http.get(path, params={name: "other"})
                assert (rejected.status_code, error_of(rejected)["param"]) == (400, name), operation


def test_a_rule_for_objects_at_any_depth_must_be_neutral() -> None:
    rules = Rules({"a.**.b": Neutral("It only labels the object.")})
    rules.check({"a": [{"b": 1, "c": {"b": 2}}], "b": 3})
    assert rules.covering("a.b") == rules.covering("a[type=x].c.b.d") == rules.by_path["a.**.b"]
    assert rules.covering("b") is rules.covering("a.c") is rules.covering("c.b") is None
    with pytest.raises(ValueError, match="must be neutral"):
        Rules({"a.**.b": Unsupported("Omit it.")})


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
