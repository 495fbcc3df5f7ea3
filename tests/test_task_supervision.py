"""No task ends unobserved, and no ``except`` clause around a task group is dead code.

- ``create_task`` and ``ensure_future`` may be called only in the functions listed below, which observe the
  end of the task. All other code uses a task group or ``SupervisedTasks``.
- A task group raises an ExceptionGroup, which ``except SomeError`` does not match.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterable, Iterator

import pytest

from tests.test_architecture import ROOT, sources

# Function -> how it observes the end of the tasks that it creates.
SUPERVISORS = {
    "server/llava_server/supervised_tasks.py:SupervisedTasks.start": "catches and reports every error",
    "server/llava_server/generation/disconnect.py:cancel_on_disconnect": "waits for both tasks",
    "wire/llava_wire/redis/connection.py:Link._run": "waits for the task and returns its result",
    "wire/llava_wire/controller_side/image_supplier.py:ImageSupplier.supply": "the task fails the job",
    "wire/llava_wire/worker_side/sharded_consumer.py:ShardedConsumer.send_heartbeat": "returns the results",
    "wire/llava_wire/worker_side/sharded_consumer.py:ShardedConsumer._wait_for_work": "raises their errors",
    "client/llava_cli/up/child_process.py:Child.start": "reader_error returns the error of the task",
    "client/llava_cli/up/child_process.py:Child.stop": "waits for the tasks",
    "client/llava_cli/up/supervisor.py:Supervisor.start": "_report_crash ends the program",
    "client/llava_cli/up/up.py:_run_until_first": "waits for all tasks and raises the first error",
    "client/llava_cli/bench/load_generator.py:_open_loop": "gathers the tasks",
    "client/llava_cli/folder/requests.py:send_all": "gathers the tasks",
    "bench/serving/overhead.py:_measure": "gathers the tasks",
    "bench/fleet/load.py:Load.run": "waits for the first error and raises it",
}
CREATORS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
GROUPS = {"create_task_group", "TaskGroup"}
# Exceptions that a task group raises. A cancellation is not wrapped in a group.
MATCHING = {"BaseException", "Exception", "BaseExceptionGroup", "ExceptionGroup"}
MATCHING |= {"CancelledError", "get_cancelled_exc_class"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef)


def name_of(node: ast.expr | None) -> str:
    """Return the last part of a name, attribute or call: ``f`` for ``a.b.f()``."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def inside(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Walk statements without entering nested functions and classes, which run later."""
    for node in nodes:
        yield node
        if not isinstance(node, (*SCOPES, ast.Lambda)):
            yield from inside(ast.iter_child_nodes(node))


def opens_group(nodes: Iterable[ast.AST], functions: set[str]) -> bool:
    """Return whether the statements open a task group, directly or in one of these functions."""
    return any(isinstance(node, ast.Call) and name_of(node) in GROUPS | functions for node in inside(nodes))


def functions_with_groups(tree: ast.Module) -> set[str]:
    """Return the names of the functions whose body opens a task group."""
    found = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS) and opens_group(node.body, set())]
    return {node.name for node in found}


def caught(handler: ast.ExceptHandler) -> set[str]:
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {name_of(each) for each in types if each is not None}


def dead_handlers(source: str) -> list[int]:
    """Return the lines of ``except`` and ``suppress`` around a task group that its errors do not match."""
    tree = ast.parse(source)
    functions = functions_with_groups(tree)
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and opens_group(node.body, functions):
            lines += [each.lineno for each in node.handlers if caught(each) - MATCHING]
        if isinstance(node, ast.With) and opens_group(node.body, functions):
            calls = [each.context_expr for each in node.items if isinstance(each.context_expr, ast.Call)]
            lines += [
                call.lineno
                for call in calls
                if name_of(call) == "suppress" and {name_of(each) for each in call.args} - MATCHING
            ]
    return sorted(lines)


def creators(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, int]]:
    """Yield the qualified name of each function that creates tasks, and the line of each call."""
    for node in ast.iter_child_nodes(tree):
        inner = scope
        if isinstance(node, SCOPES):
            inner = f"{scope}.{node.name}" if scope else node.name
        if isinstance(node, ast.Call) and name_of(node) in CREATORS:
            yield scope, node.lineno
        yield from creators(node, inner)


def all_creators() -> set[str]:
    found = set()
    for path in sources():
        tree = ast.parse(path.read_text("utf-8"))
        found |= {f"{path.relative_to(ROOT)}:{scope}" for scope, _ in creators(tree)}
    return found


def test_every_task_is_created_by_a_function_that_observes_its_end() -> None:
    assert all_creators() - SUPERVISORS.keys() == set()


def test_every_listed_function_creates_tasks() -> None:
    assert SUPERVISORS.keys() - all_creators() == set()


def test_no_clause_around_a_task_group_is_dead() -> None:
    found = {str(path.relative_to(ROOT)): dead_handlers(path.read_text("utf-8")) for path in sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "call",
    [
        "asyncio.create_task(work())",
        "asyncio.ensure_future(work())",
        "asyncio.get_running_loop().create_task(work())",
        "self.tasks.append(asyncio.create_task(work()))",
        "lambda: create_task(work())",
    ],
)
def test_a_created_task_is_found(call: str) -> None:
    source = f"class A:\n    async def run(self):\n        {call}\n"
    assert list(creators(ast.parse(source))) == [("A.run", 3)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("try:", "except QueueUnavailable:\n        pass"),
        ("try:", "except (OSError, ValueError) as error:\n        raise"),
        ("try:", "except errors.QueueUnavailable:\n        pass"),
        ("with suppress(QueueUnavailable):", ""),
        ("with contextlib.suppress(Exception, QueueUnavailable):", ""),
    ],
)
@pytest.mark.parametrize("group", ["anyio.create_task_group()", "asyncio.TaskGroup()", "create_task_group()"])
def test_a_dead_clause_is_found(before: str, after: str, group: str) -> None:
    source = (
        f"async def f():\n    {before}\n        async with {group} as tasks:\n            g()\n    {after}\n"
    )
    assert len(dead_handlers(source)) == 1


def test_a_dead_clause_around_a_call_of_a_function_with_a_task_group_is_found() -> None:
    source = (
        "async def run_all():\n    async with create_task_group() as tasks:\n        tasks.start_soon(f)\n"
        "async def main():\n    try:\n        await run_all()\n    except OSError:\n        pass\n"
    )
    assert dead_handlers(source) == [7]


ACCEPTED = {
    "Exception": """
        async def f():
            try:
                async with create_task_group():
                    g()
            except Exception:
                raise
    """,
    "except*": """
        async def f():
            try:
                async with create_task_group():
                    g()
            except* OSError:
                raise
    """,
    "finally": """
        async def f():
            try:
                async with create_task_group():
                    g()
            finally:
                h()
    """,
    "inside the group": """
        async def f():
            async with create_task_group():
                try:
                    g()
                except OSError:
                    pass
    """,
    "another function": """
        async def f():
            try:
                async def g():
                    async with create_task_group():
                        h()
            except OSError:
                pass
    """,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_clause_that_can_match_is_accepted(name: str) -> None:
    if name == "except*" and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no except*")
    assert dead_handlers(textwrap.dedent(ACCEPTED[name])) == []
