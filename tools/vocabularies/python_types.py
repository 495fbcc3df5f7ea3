"""Extracts the field names and literal values of request types from the source code of Python packages.

The types can be TypedDicts, pydantic models or dataclass-like classes. The source is parsed but not imported,
because importing a serving engine requires its dependencies.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["PythonTypes", "Vocabulary"]

# Maps the path of each field, such as ``messages[role=user].content[type=text].text``, to its literal values.
Vocabulary = dict[str, set[str]]

_WRAPPERS = {"Optional", "Union", "Required", "NotRequired", "Annotated", "ReadOnly", "SerializeAsAny"}
_LISTS = {"List", "list", "Iterable", "Sequence", "SequenceNotStr", "set", "tuple", "Tuple"}
_TAGS = ("type", "role")


class _Name(NamedTuple):
    """A definition in a module: a class, or the value of an alias."""

    module: Path
    node: ast.expr | ast.ClassDef


class PythonTypes:
    """The types in the packages of a folder. ``exclude`` lists fields whose literal values are ignored."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._modules: dict[Path, dict[str, ast.AST]] = {}

    def vocabulary(
        self, module: str, name: str, is_closed: Callable[[str], bool] | None = None
    ) -> Vocabulary:
        """Return the fields and literal values of a class in a module.

        The fields of objects at a closed path are left out. Raises LookupError if the class does not exist.
        """
        definition = self._resolve(self._path(module), name.split("."))
        if definition is None:
            raise LookupError(f"{module} does not define {name}")
        found: Vocabulary = {}
        self._visit(definition, "", (), found, is_closed or (lambda _: False))
        return found

    def _visit(
        self,
        name: _Name,
        path: str,
        parents: tuple[ast.AST, ...],
        found: Vocabulary,
        is_closed: Callable[[str], bool],
    ) -> None:
        """Add the fields of a type at ``path``. A recursive type is visited once."""
        if name.node in parents:
            return
        parents = (*parents, name.node)
        if isinstance(name.node, ast.ClassDef):
            tag = path.rpartition("[")[2].partition("=")[0] if path.endswith("]") else None
            for field, annotation, module in self._fields(name):
                if field == tag:
                    continue
                self._visit_members(
                    self._members(_Name(module, annotation)), _join(path, field), parents, found, is_closed
                )
        else:
            self._visit_members(self._members(name), path, parents, found, is_closed)

    def _visit_members(
        self,
        members: list[_Name],
        path: str,
        parents: tuple[ast.AST, ...],
        found: Vocabulary,
        is_closed: Callable[[str], bool],
    ) -> None:
        """Add the members of a field's union: literal values, and types, which can be tagged."""
        if path:
            found.setdefault(path, set())
            if is_closed(path):
                return
        types = [member for member in members if isinstance(member.node, ast.ClassDef)]
        tags = {id(each.node): self._tag(each) for each in types}
        is_union = len({id(each.node) for each in types}) > 1
        for member in members:
            if isinstance(member.node, ast.Constant):
                if not path.endswith("model"):
                    found[path].add(_text(member.node.value))
                continue
            tag = tags[id(member.node)] if is_union else None
            if tag is None:
                self._visit(member, path, parents, found, is_closed)
                continue
            field, values = tag
            for value in values:
                found.setdefault(f"{path}.{field}", set()).add(value)
                if is_closed(f"{path}[{field}={value}]"):
                    continue
                self._visit(member, f"{path}[{field}={value}]", parents, found, is_closed)

    def _tag(self, name: _Name) -> tuple[str, list[str]] | None:
        """Return the field that identifies a member of a union, and its values."""
        fields = {field: _Name(module, annotation) for field, annotation, module in self._fields(name)}
        for field in _TAGS:
            if field in fields:
                members = self._members(fields[field])
                values = [_text(each.node.value) for each in members if isinstance(each.node, ast.Constant)]
                if values:
                    return field, values
        return None

    def _fields(self, name: _Name) -> Iterator[tuple[str, ast.expr, Path]]:
        """Yield (name, annotation, module) for each field of a class and its base classes."""
        assert isinstance(name.node, ast.ClassDef)
        for base in name.node.bases:
            definition = self._resolve(name.module, _dotted(base))
            if definition is not None and isinstance(definition.node, ast.ClassDef):
                yield from self._fields(definition)
            elif definition is not None:
                yield from self._functional_fields(definition)
        for statement in name.node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                field = _alias(statement) or statement.target.id
                is_public = not field.startswith("_") and field != "model_config"
                if is_public and "ClassVar" not in ast.unparse(statement.annotation):
                    yield field, statement.annotation, name.module

    def _functional_fields(self, name: _Name) -> Iterator[tuple[str, ast.expr, Path]]:
        """Yield the fields of ``TypedDict("Name", {...})``."""
        if (
            isinstance(name.node, ast.Call)
            and len(name.node.args) == 2
            and isinstance(name.node.args[1], ast.Dict)
        ):
            for key, value in zip(name.node.args[1].keys, name.node.args[1].values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), value, name.module

    def _members(self, name: _Name, seen: tuple[ast.AST, ...] = ()) -> list[_Name]:
        """Return the classes and literal values in an annotation. Lists count as their items."""
        node = name.node
        if isinstance(node, ast.ClassDef):
            return [name]
        if node in seen:
            return []
        inner: list[ast.expr] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            inner = [ast.parse(node.value, mode="eval").body]
        elif isinstance(node, ast.BinOp):
            inner = [node.left, node.right]
        elif isinstance(node, ast.Subscript):
            kind = _dotted(node.value)[-1]
            arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if kind == "Literal":
                return [_Name(name.module, each) for each in arguments if isinstance(each, ast.Constant)]
            if kind in _WRAPPERS | _LISTS:
                inner = arguments[:1] if kind == "Annotated" else arguments
        elif isinstance(node, ast.Name | ast.Attribute):
            definition = self._resolve(name.module, _dotted(node))
            return self._members(definition, (*seen, node)) if definition else []
        return [member for each in inner for member in self._members(_Name(name.module, each), (*seen, node))]

    def _resolve(self, module: Path, dotted: list[str]) -> _Name | None:
        """Return the definition of a name in a module, following imports and nested classes."""
        names = self._names(module)
        node = names.get(dotted[0])
        if isinstance(node, ast.ImportFrom | ast.Import):
            return self._resolve_import(module, node, dotted)
        if isinstance(node, ast.ClassDef):
            return _nested(_Name(module, node), dotted[1:])
        return _Name(module, node) if isinstance(node, ast.expr) and len(dotted) == 1 else None

    def _resolve_import(
        self, module: Path, node: ast.ImportFrom | ast.Import, dotted: list[str]
    ) -> _Name | None:
        alias = next(each for each in node.names if (each.asname or each.name) == dotted[0])
        if isinstance(node, ast.Import):
            return None
        source = self._source(module, node)
        if source is None:
            return None
        submodule = self._file(source.parent / alias.name) if source.name == "__init__.py" else None
        if submodule is not None and len(dotted) > 1 and alias.name not in self._names(source):
            return self._resolve(submodule, dotted[1:])
        return self._resolve(source, [alias.name, *dotted[1:]])

    def _source(self, module: Path, node: ast.ImportFrom) -> Path | None:
        if node.level:
            folder = module.parents[node.level - 1]
            return self._file(folder.joinpath(*(node.module or "").split(".")) if node.module else folder)
        try:
            return self._path(node.module or "")
        except LookupError:
            return None

    def _path(self, module: str) -> Path:
        for folder in self._folders:
            path = self._file(folder.joinpath(*module.split(".")))
            if path is not None:
                return path
        raise LookupError(f"{module} is not in {', '.join(map(str, self._folders))}")

    @staticmethod
    def _file(path: Path) -> Path | None:
        files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
        return next((each for each in files if each.is_file()), None)

    def _names(self, module: Path) -> dict[str, ast.AST]:
        if module not in self._modules:
            self._modules[module] = _definitions(module)
        return self._modules[module]


@cache
def _definitions(module: Path) -> dict[str, ast.AST]:
    """Return the classes, assignments and imports of a module by name."""
    found: dict[str, ast.AST] = {}
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found.update({alias.asname or alias.name: node for alias in node.names})
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
    return found


def _nested(name: _Name, inner: list[str]) -> _Name | None:
    for each in inner:
        assert isinstance(name.node, ast.ClassDef)
        classes = [node for node in name.node.body if isinstance(node, ast.ClassDef) and node.name == each]
        if not classes:
            return None
        name = _Name(name.module, classes[0])
    return name


def _alias(statement: ast.AnnAssign) -> str | None:
    """Return the name of a field in JSON if it differs: Field(alias=...) or PropertyInfo(alias=...)."""
    for node in ast.walk(statement):
        if isinstance(node, ast.keyword) and node.arg == "alias" and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    return None


def _dotted(node: ast.expr) -> list[str]:
    return ast.unparse(node).split(".")


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value).lower()
