"""The third-party clients that are tested with the server, and the checks of each client.

Each client has a folder in ``clients/``:

- ``requirements.in`` pins the packages that the client's users install, and ``requirements.txt`` all packages
  of its environment. Node.js clients have ``package.json`` and ``package-lock.json`` instead.
- ``checks.py`` (or ``checks.mjs``) has one public function per check.
- ``example.py`` (or ``.sh``, ``.mjs``) is the program in ``docs/guides/clients.md``.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "clients"

# Checks that are a column of the table in docs/guides/clients.md, with the heading of the column.
FEATURES = {
    "streaming": "streaming",
    "tool_loop": "tool loop",
    "typed_output": "typed output",
    "typed_output_with_tools": "typed output with tools",
    "image_input": "image input",
    "image_from_tool": "image from a tool",
    "embeddings": "embeddings",
}


@dataclass(frozen=True)
class Client:
    """A client with its environment.

    The checks of light clients, except for ``slow_checks``, run with all other tests. ``make interop`` runs
    all checks of all clients.
    """

    name: str
    title: str
    address: str  # of its documentation
    is_light: bool = False
    slow_checks: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def is_node(self) -> bool:
        return (self.folder / "package.json").exists()

    @property
    def version(self) -> str:
        """The version of the first package that the client's users install."""
        if self.is_node:
            dependencies: dict[str, str] = json.loads((self.folder / "package.json").read_text())[
                "dependencies"
            ]
            return next(iter(dependencies.values()))
        return (self.folder / "requirements.in").read_text().splitlines()[0].partition("==")[2]

    @property
    def packages(self) -> list[str]:
        """The packages that the client's users install, without versions."""
        if self.is_node:
            return list(json.loads((self.folder / "package.json").read_text())["dependencies"])
        lines = (self.folder / "requirements.in").read_text().splitlines()
        return [line.partition("==")[0] for line in lines if not line.startswith("#")]

    @property
    def example(self) -> Path | None:
        return next(iter(sorted(self.folder.glob("example.*"))), None)

    @property
    def checks(self) -> list[str]:
        """The names of the checks, in the order of their definition."""
        if self.is_node:
            source = (self.folder / "checks.mjs").read_text("utf-8")
            return re.findall(r"^export (?:async function|const) (\w+)", source, re.MULTILINE)
        functions = ast.parse((self.folder / "checks.py").read_text("utf-8")).body
        return [
            node.name
            for node in functions
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        ]


CLIENTS = (
    Client("openai", "OpenAI Python", "https://github.com/openai/openai-python", is_light=True),
    Client(
        "anthropic", "Anthropic Python", "https://github.com/anthropics/anthropic-sdk-python", is_light=True
    ),
    Client("ollama", "Ollama Python", "https://github.com/ollama/ollama-python", is_light=True),
    Client(
        "langchain",
        "LangChain",
        "https://docs.langchain.com",
        is_light=True,
        slow_checks=frozenset({"standard_tests_of_responses", "standard_tests_of_anthropic"}),
    ),
    Client(
        "openai-agents", "OpenAI Agents SDK", "https://openai.github.io/openai-agents-python", is_light=True
    ),
    Client("pydantic-ai", "Pydantic AI", "https://ai.pydantic.dev", is_light=True),
    Client("instructor", "Instructor", "https://python.useinstructor.com", is_light=True),
    Client("openai-node", "OpenAI Node", "https://github.com/openai/openai-node"),
    Client("anthropic-node", "Anthropic Node", "https://github.com/anthropics/anthropic-sdk-typescript"),
    Client("ollama-js", "Ollama JS", "https://github.com/ollama/ollama-js"),
    Client("ai-sdk", "AI SDK", "https://ai-sdk.dev"),
    Client("smolagents", "smolagents", "https://huggingface.co/docs/smolagents"),
    Client("litellm", "LiteLLM", "https://docs.litellm.ai"),
    Client("inspect-ai", "Inspect", "https://inspect.aisi.org.uk"),
    Client("guidellm", "GuideLLM", "https://github.com/vllm-project/guidellm"),
    Client("aiperf", "AIPerf", "https://github.com/ai-dynamo/aiperf"),
)
