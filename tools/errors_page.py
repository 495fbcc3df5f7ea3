"""Generate the lists of messages in docs/reference/errors.md from the sources of server, wire and worker.

    python tools/errors_page.py

The messages are extracted from the syntax tree. Each message can therefore be defined next to the check that
raises it, and all messages can still be reviewed on one page. Text outside the markers is written by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_server.errors import ERRORS

__all__ = ["BATCH_CODES", "BATCH_PAGE", "PAGE", "Message", "catalogue", "fill", "fill_batches", "messages_of"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "errors.md"
BATCH_PAGE = ROOT / "docs" / "guides" / "batches.md"
PACKAGES = {
    "server": ROOT / "server" / "llava_server",
    "wire": ROOT / "wire" / "llava_wire",
    "worker": ROOT / "worker" / "llava_worker",
}
# Codes of the errors in a batch and in its error file. They have no HTTP status.
BATCH_CODES = (
    "batch_cancelled",
    "batch_expired",
    "batch_output_full",
    "duplicate_custom_id",
    "empty_file",
    "line_too_long",
    "too_many_tasks",
)
BEGIN, END = "<!-- messages -->", "<!-- end -->"


@dataclass(frozen=True, order=True)
class Message:
    """A message that clients can receive. ``template`` is its text, with placeholders in braces."""

    code: str
    template: str
    package: str

    @property
    def status(self) -> int | None:
        """The HTTP status for the error code."""
        return ERRORS[self.code].status if self.code in ERRORS else None

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the placeholders in the template."""
        return tuple(re.findall(r"{(\w+)}", self.template))


@dataclass(frozen=True)
class Carrier:
    """A callable that takes an error message as an argument.

    ``message`` is the position of that argument, and ``code`` is the error code or the position of the code.
    ``template`` is the text that clients receive if the argument is only a part of it.
    """

    message: int
    code: int | str
    template: str = "{}"


# Error constructors. Functions that pass one of their parameters to such a constructor are also carriers.
_CONSTRUCTORS = {
    "ApiError": Carrier(1, 0),
    "ImageError": Carrier(1, 0),
    "JobError": Carrier(1, 0),
    "PromptError": Carrier(1, 0),
    "PydanticCustomError": Carrier(1, 0),
    "RenderingError": Carrier(1, 0, "The model's chat template {}"),
    "invalid_value": Carrier(1, "invalid_value"),
    "QueueFull": Carrier(0, "queue_full"),
    "TenantOverLimit": Carrier(0, "rate_limit_exceeded"),
    "StoreFull": Carrier(0, "storage_full"),
    "CommandRefused": Carrier(0, "order_refused"),
    "UnsupportedGrammar": Carrier(0, "invalid_request", "The {kind} cannot be enforced: {}."),
    "JsonTooLarge": Carrier(0, "request_too_large", "The request body {}"),
    "Unsupported": Carrier(0, "unsupported_parameter", "{name} is not supported. {}"),
    "BatchIssue": Carrier(1, 0),
}
_PYDANTIC_CODES = {"missing": "missing_required_parameter"}


def catalogue() -> list[Message]:
    """Return every message of the three packages, sorted by code and text."""
    found = {
        message
        for package, folder in PACKAGES.items()
        for message in messages_of([path.read_text("utf-8") for path in _sources(folder)], package)
    }
    return sorted(found)


def _sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if path.name != "echo_engine.py"]  # for tests only


def messages_of(sources: Iterable[str], package: str) -> set[Message]:
    """Return the messages in the source files of a package."""
    modules = [ast.parse(source) for source in sources]
    calls = [call for module in modules for call in _calls(module)]
    carriers = _with_wrappers(calls)
    found = {
        Message(code, carrier.template.replace("{}", text), package)
        for call in calls
        if (carrier := carriers.get(call.name)) and len(call.arguments) > carrier.message
        for code in call.codes(carrier)
        for text in call.texts(call.arguments[carrier.message])
        if " " in text and text != "{message}"
    }
    return {message for message in found if message.code in ERRORS or message.code in BATCH_CODES}


def fill(page: str, messages: list[Message]) -> str:
    """Return the page with each message listed in the section of its code, ``## code``."""
    sections = page.split("\n## ")
    for index, section in enumerate(sections[1:], 1):
        code = section.partition("\n")[0]
        head, _, rest = section.partition(f"{BEGIN}\n")
        _, end, tail = rest.partition(END)
        if not end:
            raise SystemExit(
                f"docs/reference/errors.md: section {code} must contain the markers {BEGIN} and {END}"
            )
        lines = [f"- {each.template} *({each.package})*\n" for each in messages if each.code == code]
        sections[index] = f"{head}{BEGIN}\n\n{''.join(lines)}\n{END}{tail}"
    return "\n## ".join(sections)


def fill_batches(page: str, messages: list[Message]) -> str:
    """Return docs/guides/batches.md with the batch errors in its marked part."""
    head, begin, rest = page.partition(f"{BEGIN}\n")
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"docs/guides/batches.md must contain the markers {BEGIN} and {END}")
    lines = [f"- `{each.code}`: {each.template}\n" for each in messages if each.code in BATCH_CODES]
    return f"{head}{begin}\n{''.join(lines)}\n{end}{tail}"


@dataclass(frozen=True)
class _Call:
    """A call, with the context needed to resolve the names in its arguments."""

    name: str
    arguments: list[ast.expr]
    function: str  # the function that contains the call
    parameters: list[str]  # the parameters of that function, without self
    assigned: dict[str, list[ast.expr]]  # values assigned to names in the function and in the module
    is_own: bool = False  # for StoreFull: whether the limit applies to the tenant's own files or batches

    def codes(self, carrier: Carrier) -> list[str]:
        """Return the error codes that the call can raise."""
        if self.name == "StoreFull" and self.is_own:
            return ["too_many_files"]
        if isinstance(carrier.code, str):
            return [carrier.code]
        codes = self.texts(self.arguments[carrier.code])
        return [_PYDANTIC_CODES.get(code, code) for code in codes]

    def texts(self, value: ast.expr) -> list[str]:
        """Return a template for each text that an expression can yield, or [] if it is a parameter."""
        if isinstance(value, ast.Constant):
            return [value.value] if isinstance(value.value, str) else []
        if isinstance(value, ast.Attribute):  # ErrorCode.QUEUE_FULL, ErrorCode.QUEUE_FULL.value
            name = ast.unparse(value).removeprefix("ErrorCode.").removesuffix(".value")
            return [name.lower()] if name.isupper() else []
        if isinstance(value, ast.IfExp):
            return [*self.texts(value.body), *self.texts(value.orelse)]
        if isinstance(value, ast.Name):
            return [text for each in self.assigned.get(value.id, ()) for text in self.texts(each)]
        if isinstance(value, ast.JoinedStr):
            return ["".join(self._piece(piece) for piece in value.values)]
        return []

    def _piece(self, piece: ast.expr) -> str:
        if isinstance(piece, ast.Constant):
            return str(piece.value)
        expression: ast.expr = piece.value if isinstance(piece, ast.FormattedValue) else piece
        if isinstance(expression, ast.Name) and expression.id.strip("_").isupper():
            texts = self.texts(expression)
            if texts:
                return texts[0]
        names: list[str] = re.findall(r"[A-Za-z_]\w*", ast.unparse(expression))
        return f"{{{names[-1].strip('_').lower()}}}"


def _calls(module: ast.Module) -> Iterator[_Call]:
    yield from _calls_in(module, "", [], _assigned(module.body))


def _calls_in(
    node: ast.AST, function: str, parameters: list[str], assigned: dict[str, list[ast.expr]]
) -> Iterator[_Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [each.arg for each in child.args.posonlyargs + child.args.args if each.arg != "self"]
            local = {**assigned, **_assigned(ast.walk(child))}
            yield from _calls_in(child, child.name, names, local)
            continue
        if isinstance(child, ast.Call):
            name = ast.unparse(child.func).rpartition(".")[2]
            is_own = any(
                each.arg == "is_own" and ast.unparse(each.value) == "True" for each in child.keywords
            )
            yield _Call(name, _arguments(child), function, parameters, assigned, is_own)
        if isinstance(child, ast.Tuple) and len(child.elts) == 2:  # an entry in a table of codes and messages
            yield _Call("ApiError", child.elts, function, parameters, assigned)
        yield from _calls_in(child, function, parameters, assigned)


def _arguments(call: ast.Call) -> list[ast.expr]:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    return [*call.args, *(named[name] for name in ("code", "message") if name in named)]


def _assigned(statements: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for each in statements:
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
            found.setdefault(each.targets[0].id, []).append(each.value)
        elif (
            isinstance(each, ast.Assign)
            and isinstance(each.targets[0], ast.Tuple)
            and isinstance(each.value, ast.Tuple)
        ):
            for target, value in zip(each.targets[0].elts, each.value.elts, strict=False):
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(value)
    return found


def _with_wrappers(calls: list[_Call]) -> dict[str, Carrier]:
    """Return the constructors and all functions that pass one of their parameters to a carrier."""
    carriers = dict(_CONSTRUCTORS)
    while True:
        before = len(carriers)
        for call in calls:
            carrier = carriers.get(call.name)
            if carrier is None or call.function in carriers or len(call.arguments) <= carrier.message:
                continue
            message = ast.unparse(call.arguments[carrier.message])
            if message in call.parameters:
                code: int | str = carrier.code
                if isinstance(code, int):
                    passed = ast.unparse(call.arguments[code])
                    code = (
                        call.parameters.index(passed)
                        if passed in call.parameters
                        else "".join(call.codes(carrier)[:1])
                    )
                carriers[call.function] = Carrier(call.parameters.index(message), code)
        if len(carriers) == before:
            return carriers


def main() -> None:
    messages = catalogue()
    PAGE.write_text(fill(PAGE.read_text("utf-8"), messages), "utf-8")
    BATCH_PAGE.write_text(fill_batches(BATCH_PAGE.read_text("utf-8"), messages), "utf-8")


if __name__ == "__main__":
    main()
