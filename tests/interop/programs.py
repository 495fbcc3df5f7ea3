"""Run a client's programs in its environment: its checks, in one process, and its example."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop.catalog import Client
from tests.interop.environments import ROOT

INTEROP = Path(__file__).parent
IMAGE = ROOT / "examples" / "shapes.png"


@dataclass
class Programs:
    """The programs of a client. Checks run once; their results are retained."""

    client: Client
    environment: Path
    server_url: str
    _errors: dict[str, str | None] = field(default_factory=dict)
    _output: str = ""

    def error_of(self, check: str, selected: Iterable[str]) -> str | None:
        """Return the error of a check, or None if it passed. The first call runs all ``selected`` checks."""
        if not self._errors:
            self._run_checks(list(selected))
        return self._errors.get(check, f"The check was not run:\n{self._output}")

    def run_example(self) -> subprocess.CompletedProcess[str]:
        example = self.client.example
        assert example is not None
        command = ["sh", str(example)] if example.suffix == ".sh" else [*self._interpreter, str(example)]
        return self._run(command, ROOT)

    @property
    def _interpreter(self) -> list[str]:
        return ["node"] if self.client.is_node else [str(self.environment / "bin" / "python")]

    def _run_checks(self, selected: list[str]) -> None:
        if self.client.is_node:  # Node.js resolves packages in the folder of the importing file
            for source in (
                self.client.folder / "checks.mjs",
                INTEROP / "scene.mjs",
                INTEROP / "run_checks.mjs",
            ):
                shutil.copy(source, self.environment)
            command = ["node", "run_checks.mjs", "./checks.mjs"]
            folder = self.environment
        else:
            command = [*self._interpreter, str(INTEROP / "run_checks.py"), "checks.py", *selected]
            folder = self.client.folder
        result = self._run(command, folder)
        self._output = result.stderr
        for line in result.stdout.splitlines():
            if line.startswith('{"check"'):
                outcome = json.loads(line)
                self._errors[outcome["check"]] = outcome["error"]

    def _run(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        variables = {
            "OPENAI_BASE_URL": f"{self.server_url}/v1",
            "OPENAI_API_KEY": "none",
            "ANTHROPIC_BASE_URL": self.server_url,
            "ANTHROPIC_API_KEY": "none",
            "OLLAMA_HOST": self.server_url,
            "INTEROP_IMAGE": str(IMAGE),
            "PYTHONPATH": str(INTEROP),
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            # Programs must not download price lists or send telemetry.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DO_NOT_TRACK": "1",
        }
        return subprocess.run(
            command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
