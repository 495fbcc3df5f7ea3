"""The terminal output of ``llava-serve up``: a spinner during startup, then a panel, then important events.

If the output is not a terminal, the same information is printed as plain lines. The output of the children is
shown only with ``--verbose``.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.status import Status

from llava_cli.up.plan import LaunchPlan

__all__ = ["Display", "curl_command", "example_image"]

_COLORS = ("cyan", "magenta", "green", "yellow", "blue")
_STATUS_WIDTH = 70
_IMAGES = ("*.png", "*.jpg", "*.jpeg", "*.webp")


class Display:
    """The output of ``up``. Events and the children's output go to stderr, the ready message to stdout."""

    def __init__(self, *, is_verbose: bool) -> None:
        self._out = Console(highlight=False)
        self._err = Console(stderr=True, highlight=False)
        self._is_verbose = is_verbose
        self._status: Status | None = None
        self._colors: dict[str, str] = {}

    @contextmanager
    def waiting(self, activity: str) -> Iterator[None]:
        """Show a spinner with ``activity`` until a child prints a line, and then with the latest line."""
        if not self._err.is_terminal:
            self.show(activity)
            yield
            return
        with self._err.status(escape(activity)) as self._status:
            yield
        self._status = None

    def line(self, name: str, text: str) -> None:
        """Process a line of a child's output."""
        if self._is_verbose:
            color = self._colors.setdefault(name, _COLORS[len(self._colors) % len(_COLORS)])
            self._err.print(f"[{color}]{name:>9} |[/] {escape(text)}", soft_wrap=True)
        elif self._status is not None:
            self._status.update(escape(f"{name}: {text}"[:_STATUS_WIDTH]))

    def show(self, sentence: str) -> None:
        """Print a message, whether or not ``--verbose`` is set."""
        self._err.print(escape(sentence), soft_wrap=True)

    def ready(self, plan: LaunchPlan, model: str) -> None:
        """Print the URLs, the model, how to stop the server, and a curl command to try."""
        rows = [
            f"playground  {plan.base_url}/",
            f"API         {plan.base_url}/v1",
            f"model       {model}",
        ]
        if plan.generated_key:
            rows.append(f"API key     {plan.generated_key}")
        rows.append("stop        Ctrl-C")
        text = escape("\n".join(rows))
        if self._out.is_terminal:
            self._out.print(Panel(text, title="llava-serve is up", expand=False))
        else:
            self._out.print(f"llava-serve is up\n{text}", soft_wrap=True)
        # The command is printed outside the panel and unwrapped, so that it can be copied.
        self._out.print(escape(curl_command(plan, model, example_image(Path.cwd()))), soft_wrap=True)

    def tail(self, lines: Sequence[str]) -> None:
        """Print the last lines of a child that failed, unless they have already been shown."""
        if not self._is_verbose:
            for line in lines:
                self._err.print(escape(f"  {line}"), soft_wrap=True)


def example_image(folder: Path) -> str:
    """Return the image for the curl command: the first one in ``examples/``, or a placeholder name."""
    found = sorted(path for pattern in _IMAGES for path in (folder / "examples").glob(pattern))
    return str(found[0].relative_to(folder)) if found else "photo.png"


def curl_command(plan: LaunchPlan, model: str, image: str) -> str:
    """Return a command that asks about ``image``. It works in sh, bash and zsh and with GNU and BSD tools."""
    # Servers detect the format from the bytes, so the media type does not have to match.
    before = f'{{"model": {json.dumps(model)}, "messages": [{{"role": "user", "content": ['
    before += '{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
    after = '"}}, {"type": "text", "text": "What is in the picture?"}]}]}'
    encoded = f'"$(base64 < {shlex.quote(image)} | tr -d "\\n")"'
    key = f" -H 'Authorization: Bearer {plan.generated_key}'" if plan.generated_key else ""
    return (
        f"curl -s {plan.base_url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{before}'{encoded}'{after}'"
    )
