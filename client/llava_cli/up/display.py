"""What ``llava-serve up`` shows: a spinner while it starts, then a panel, then only what matters.

Without a terminal the same facts come as plain lines. Children's output is shown with ``--verbose`` only.
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

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")
_STATUS_WIDTH = 70
_IMAGES = ("*.png", "*.jpg", "*.jpeg", "*.webp")


class Display:
    """Owns the terminal while ``up`` runs: children's lines go to stderr, what is ready goes to stdout."""

    def __init__(self, *, is_verbose: bool) -> None:
        self._out = Console(highlight=False)
        self._err = Console(stderr=True, highlight=False)
        self._is_verbose = is_verbose
        self._status: Status | None = None
        self._colours: dict[str, str] = {}

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something is under way, with the children's latest line beside it."""
        if not self._err.is_terminal:
            self.show(what)
            yield
            return
        with self._err.status(escape(what)) as self._status:
            yield
        self._status = None

    def line(self, name: str, text: str) -> None:
        """One line that a child printed."""
        if self._is_verbose:
            colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            self._err.print(f"[{colour}]{name:>9} |[/] {escape(text)}", soft_wrap=True)
        elif self._status is not None:
            self._status.update(escape(f"{name}: {text}"[:_STATUS_WIDTH]))

    def show(self, sentence: str) -> None:
        """A fact that is shown in any case."""
        self._err.print(escape(sentence), soft_wrap=True)

    def ready(self, plan: LaunchPlan, model: str) -> None:
        """Where everything is and how to try and stop it."""
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
        # Outside the panel and unwrapped, so that it can be copied.
        self._out.print(escape(curl_command(plan, model, example_image(Path.cwd()))), soft_wrap=True)

    def tail(self, lines: Sequence[str]) -> None:
        """The last lines of a child that failed, unless they have been shown already."""
        if not self._is_verbose:
            for line in lines:
                self._err.print(escape(f"  {line}"), soft_wrap=True)


def example_image(folder: Path) -> str:
    """Return an image for the curl command: the first one in ``examples/``, otherwise a made-up name."""
    found = sorted(path for pattern in _IMAGES for path in (folder / "examples").glob(pattern))
    return str(found[0].relative_to(folder)) if found else "photo.png"


def curl_command(plan: LaunchPlan, model: str, image: str) -> str:
    """Return a command that asks about ``image``. It works in sh, bash and zsh, with GNU and BSD tools."""
    # Servers detect the format from the bytes, so the media type need not be the image's own.
    before = f'{{"model": {json.dumps(model)}, "messages": [{{"role": "user", "content": ['
    before += '{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
    after = '"}}, {"type": "text", "text": "What is in the picture?"}]}]}'
    encoded = f'"$(base64 < {shlex.quote(image)} | tr -d "\\n")"'
    key = f" -H 'Authorization: Bearer {plan.generated_key}'" if plan.generated_key else ""
    return (
        f"curl -s {plan.base_url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{before}'{encoded}'{after}'"
    )
