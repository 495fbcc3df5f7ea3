"""The API reference at /docs: one HTML page without scripts, rendered from the OpenAPI document.

The page shares its origin with the playground, which stores the API key. It therefore contains no third-party
code and has the same content security policy. All text from the document is escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["render_page"]

Schema = Mapping[str, Any]

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>{title} API reference</title>
  <link rel="icon" href="/playground/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/playground/style.css">
  <link rel="stylesheet" href="/playground/reference.css">
</head>
<body class="reference">
<header><h1>{title} <small>{version}</small></h1>
<p>{summary} <a href="/">Playground</a> · <a href="/openapi.json">OpenAPI document</a></p>
<p>In the examples, <code>$URL</code> is the address of this server and <code>$KEY</code> is an API key.</p>
</header>
<nav aria-label="Routes">{nav}</nav>
<main>
{operations}
<section><h2 id="schemas">Schemas</h2>
{schemas}
</section>
</main>
</body>
</html>
"""
_LIMITS = (
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
    "default",
)
_CODE = re.compile(r"(`+)(.+?)\1")
_REF = "#/components/schemas/"


def render_page(document: Schema) -> str:
    """Return the HTML page that describes all routes and schemas of an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    by_tag: dict[str, list[tuple[str, str, Schema]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
    nav, sections = [], []
    for tag, operations in by_tag.items():
        links = "".join(f"<li>{_operation_link(*each)}</li>" for each in operations)
        nav.append(f"<h2>{escape(tag)}</h2><ul>{links}</ul>")
        articles = "\n".join(_operation(*each, schemas) for each in operations)
        sections.append(f'<section><h2 id="tag-{escape(tag)}">{escape(tag)}</h2>\n{articles}</section>')
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        summary=_text(info.get("summary", "")),
        nav="".join(nav),
        operations="\n".join(sections),
        schemas="\n".join(_schema(name, schema) for name, schema in sorted(schemas.items())),
    )


def _operation_link(method: str, path: str, operation: Schema) -> str:
    return f'<a href="#{escape(operation["operationId"])}">{method.upper()} {escape(path)}</a>'


def _operation(method: str, path: str, operation: Schema, schemas: Schema) -> str:
    """Return the description, parameters, body, example and responses of an operation."""
    parts = [
        f'<h3 id="{escape(operation["operationId"])}"><code>{method.upper()} {escape(path)}</code></h3>',
        f"<p><strong>{_text(operation['summary'])}.</strong> {_text(operation.get('description', ''))}</p>",
    ]
    if "security" in operation:
        parts.append("<p>Requires an API key.</p>")
    if parameters := operation.get("parameters"):
        rows = [
            (f"{each['name']} ({each['in']})", {**each["schema"], "description": each.get("description", "")})
            for each in parameters
        ]
        required = {f"{each['name']} ({each['in']})" for each in parameters if each["required"]}
        parts.append(f"<h4>Parameters</h4>{_table(rows, required)}")
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body</h4><p>{_type(content['schema'])}, <code>{escape(media_type)}</code></p>")
    parts.append(f"<h4>Example</h4><pre>{escape(_curl(method, path, operation, schemas))}</pre>")
    parts.append(f"<h4>Responses</h4><table>{''.join(_responses(operation))}</table>")
    return f"<article>{''.join(parts)}</article>"


def _responses(operation: Schema) -> Iterator[str]:
    for status, response in operation["responses"].items():
        bodies = " or ".join(
            f"{_type(content['schema'])} <small>{escape(media_type)}</small>"
            for media_type, content in response["content"].items()
        )
        yield f"<tr><td>{status}</td><td>{bodies}</td><td>{_text(response['description'])}</td></tr>"


def _schema(name: str, schema: Schema) -> str:
    required = set(schema.get("required", ()))
    fields = schema.get("properties", {})
    body = _table(fields.items(), required) if fields else f"<p>{_type(schema)}</p>"
    description = _text(schema.get("description", ""))
    return (
        f'<details id="schema-{escape(name)}" open><summary><code>{escape(name)}</code></summary>'
        f"<p>{description}</p>{body}</details>"
    )


def _table(fields: Any, required: set[str]) -> str:
    """Return a table with the name, type, limits, description and example of each field."""
    rows = []
    for name, schema in fields:
        mark = ' <small class="required">required</small>' if name in required else ""
        limits = "".join(f"<br><small>{escape(limit)}</small>" for limit in _limits(schema))
        examples = schema.get("examples", ())[:1]
        example = "".join(f"<br><small>Example: <code>{_json(each)}</code></small>" for each in examples)
        rows.append(
            f"<tr><td><code>{escape(name)}</code>{mark}</td><td>{_type(schema)}{limits}</td>"
            f"<td>{_text(schema.get('description', ''))}{example}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _type(schema: Schema) -> str:
    """Return the type of a value as HTML, with links to the schemas that it refers to."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REF))
        return f'<a href="#schema-{name}">{name}</a>'
    if "const" in schema:
        return f"<code>{_json(schema['const'])}</code>"
    if "enum" in schema:
        return " | ".join(f"<code>{_json(value)}</code>" for value in schema["enum"])
    if branches := [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        return " | ".join(dict.fromkeys(map(_type, branches)))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"array of ({_type(schema.get('items', {}))})"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping):
        return f"object with values ({_type(values)})"
    return escape(kind if isinstance(kind, str) else " | ".join(kind))


def _limits(schema: Schema) -> list[str]:
    """Return the limits of a value. Those of alternatives are included."""
    limits = [f"{name}: {json.dumps(schema[name])}" for name in _LIMITS if schema.get(name) is not None]
    for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        limits += _limits(branch)
    return list(dict.fromkeys(limits))


def _curl(method: str, path: str, operation: Schema, schemas: Schema) -> str:
    """Return a curl command that sends the required fields with their example values."""
    parts = [f'curl "$URL{path}"' if method == "get" else f'curl -X {method.upper()} "$URL{path}"']
    if "security" in operation:
        parts.append('-H "Authorization: Bearer $KEY"')
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = schemas[content["schema"]["$ref"].removeprefix(_REF)]
        body = {name: schema["properties"][name]["examples"][0] for name in schema.get("required", ())}
        if media_type == "multipart/form-data":
            parts += [f"-F {shlex.quote(f'{name}={value}')}" for name, value in body.items()]
        else:
            parts.append(f"-H 'Content-Type: {media_type}'")
            parts.append(f"-d {shlex.quote(json.dumps(body))}")
    return " \\\n  ".join(parts)


def _json(value: Any) -> str:
    return escape(json.dumps(value))


def _text(text: str) -> str:
    """Return text as HTML. Text in backticks is displayed as code."""
    return _CODE.sub(r"<code>\2</code>", escape(" ".join(text.split())))
