"""Validation of objects against the schemas of the Kubernetes API and of custom resources.

Unknown fields are errors, as in the strict field validation that ``kubectl apply`` requests.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.deploy.helm import Manifest

__all__ = ["problems"]

_KUBERNETES = files("kubernetes_validate") / "kubernetes-json-schema" / "v1.37.0-local-strict"
_CUSTOM = Path(__file__).parent / "schemas"
_CUSTOM_GROUPS = ("keda.sh", "monitoring.coreos.com", "gateway.networking.k8s.io")


def problems(manifest: Manifest) -> list[str]:
    """Return the violations of the object's schema. Raises FileNotFoundError if it has no schema."""
    validator = _validator(manifest["apiVersion"], manifest["kind"])
    return [
        f"{'.'.join(map(str, error.instance_path))}: {error}" for error in validator.iter_errors(manifest)
    ]


@functools.cache
def _validator(api_version: str, kind: str) -> jsonschema_rs.Draft202012Validator:
    group, _, version = api_version.rpartition("/")
    if group in _CUSTOM_GROUPS:
        schema = json.loads((_CUSTOM / f"{kind.lower()}.json").read_text())
        return jsonschema_rs.Draft202012Validator(_without_unknown_fields(schema))
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
    schema = json.loads((_KUBERNETES / f"{name}.json").read_text())
    return jsonschema_rs.Draft202012Validator(schema, registry=_definitions())


@functools.cache
def _definitions() -> jsonschema_rs.Registry:
    contents = json.loads((_KUBERNETES / "_definitions.json").read_text())
    return jsonschema_rs.Registry([(contents["$id"], contents)])


def _without_unknown_fields(schema: Any) -> Any:
    """Return the schema of a custom resource in which objects have no other than the listed properties.

    ``metadata`` is an exception, because the API server validates it.
    """
    if isinstance(schema, list):
        return [_without_unknown_fields(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _without_unknown_fields(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed
