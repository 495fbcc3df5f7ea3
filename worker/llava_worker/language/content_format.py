"""Detects whether a chat template expects the content of messages as a list of parts or as a string.

The rule is the same as in vLLM (``_detect_content_format``): a template that loops over the content of a
message expects a list. The content can first be assigned to a variable, passed to a macro, filtered or
sliced. In addition to vLLM's rule, ``content[0].text`` and ``content[0]['type']`` imply a list.
"""

from __future__ import annotations

from collections.abc import Iterator

from jinja2 import nodes

__all__ = ["expects_list_content"]


def expects_list_content(template: nodes.Template) -> bool:
    """Return whether the parsed template accesses the parts of a message's content."""
    names = _content_names(template)
    loops = any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))
    return loops or any(
        _is_part_access(access, names) for access in template.find_all((nodes.Getattr, nodes.Getitem))
    )


def _content_names(template: nodes.Template) -> set[str]:
    """Return the names of all variables and macro parameters that can contain a message's content.

    Scopes are ignored.
    """
    names: set[str] = set()
    size = -1
    while len(names) > size:
        size = len(names)
        names |= {target for target, value in _assignments(template) if _is_content(value, names)}
    return names


def _assignments(template: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    """Yield the name and the value of every assignment to a variable or a macro parameter."""
    for assignment in template.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name):
            yield assignment.target.name, assignment.node
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in macros:
            parameters = macros[call.node.name].args
            yield from ((name.name, value) for name, value in zip(parameters, call.args, strict=False))
            yield from ((argument.key, argument.value) for argument in call.kwargs)


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    """Return whether an expression's value is a message's content or a list of some of its parts."""
    if isinstance(node, nodes.Filter):
        return _is_content(node.node, names)
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, names) or _is_content(node.expr2, names)
    if isinstance(node, nodes.Or):
        return _is_content(node.left, names) or _is_content(node.right, names)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is_content(node.node, names)
    if isinstance(node, nodes.Name):
        return node.name in names
    return _key(node) == "content"


def _is_part_access(node: nodes.Node, names: set[str]) -> bool:
    """Return whether an expression is ``content[0].text`` or ``content[0].type``."""
    if not isinstance(node, (nodes.Getattr, nodes.Getitem)) or _key(node) not in ("text", "type"):
        return False
    part = node.node
    return isinstance(part, nodes.Getitem) and type(_key(part)) is int and _is_content(part.node, names)


def _key(node: nodes.Node | None) -> object:
    """Return the key of ``value.key`` or ``value['key']``, or None for other expressions."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value
    return None
