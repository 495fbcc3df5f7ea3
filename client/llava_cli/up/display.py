"""The terminal output of ``llava-serve up``: a spinner during startup, then a panel, then important events.

If the output is not a terminal, the same information is printed as plain lines. The children's output is
shown in full only with ``--verbose``.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llava_cli.up.plan import LaunchPlan

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

__all__ = ["Display", "commands", "example_image"]

_COLORS = ("cyan", "magenta", "green", "yellow", "blue")
_STATUS_WIDTH = 70
_QUESTION = "What is in the picture?"
_IMAGES = ("*.png", "*.jpg", "*.jpeg", "*.webp")


# A line of a worker's log, and the logger whose messages are shown once the server is ready.
_LOG_LINE = re.compile(r"\S+ \S+ [A-Z]+ (?P<logger>[\w.]+): (?P<message>.*)")
_SELECTED = "llava_worker.selected"
_REAL_MODEL = (
    "tiny-llava recognizes only drawings of shapes, numbers and short words. To serve a real model, stop\n"
    "this command and run, for example (downloads 14 GB):\n"
    "llava-serve up --model llava-hf/llava-1.5-7b-hf --precision int4"
)


class Display:
    """Prints the output of ``up``.

    Events and the children's output go to stderr. The ready message goes to stdout. rich is imported for the
    first output and not before, because this takes 0.02 s, in which the children can already start.
    """

    def __init__(self, *, is_verbose: bool) -> None:
        self._is_verbose = is_verbose
        self._status: Status | None = None
        self._colors: dict[str, str] = {}
        self._selected: dict[str, str] = {}  # what the workers selected, such as the device: value and reason
        self._is_ready = False

    @cached_property
    def _out(self) -> Console:
        return _console(is_stderr=False)

    @cached_property
    def _err(self) -> Console:
        return _console(is_stderr=True)

    @contextmanager
    def waiting(self, activity: str) -> Iterator[None]:
        """Show a spinner next to ``activity``. Output from the children replaces this text, line by line."""
        if not self._err.is_terminal:
            self.show(activity)
            yield
            return
        with self._err.status(_escape(activity)) as self._status:
            yield
        self._status = None

    def line(self, name: str, text: str) -> None:
        """Handle a line of a child's output."""
        entry = _LOG_LINE.fullmatch(text)
        message = entry["message"] if entry else text
        if entry and entry["logger"] == _SELECTED:
            key, _, value = message.partition(": ")
            self._select(key, value)
        if self._is_verbose:
            color = self._colors.setdefault(name, _COLORS[len(self._colors) % len(_COLORS)])
            self._err.print(f"[{color}]{name:>9} |[/] {_escape(text)}", soft_wrap=True)
        elif self._status is not None:
            self._status.update(_escape(f"{name}: {message}"[:_STATUS_WIDTH]))

    def _select(self, key: str, value: str) -> None:
        """Record what a worker selected, and print it if the server is already ready and this is new."""
        if self._is_ready and not self._is_verbose and self._selected.get(key) != value:
            self.show(f"{key}: {value}")
        self._selected[key] = value

    def show(self, sentence: str) -> None:
        """Print a message, regardless of ``--verbose``."""
        self._err.print(_escape(sentence), soft_wrap=True)

    def ready(self, plan: LaunchPlan, model: str, private_url: str | None) -> None:
        """Print the URLs, the model, what the workers selected, any generated key, and commands to try.

        ``private_url`` is the URL of the private Redis server, if there is one. Other URLs are not printed,
        because they may contain a password.
        """
        rows = [
            f"playground  {plan.base_url}/",
            f"API         {plan.base_url}/v1",
            f"model       {model}",
        ]
        rows += [f"{key:<11} {value}" for key, value in self._selected.items()]
        if plan.generated_key:
            rows.append(f"API key     {plan.generated_key}")
        rows.append("stop        Ctrl-C")
        self._is_ready = True
        text = _escape("\n".join(rows))
        if self._out.is_terminal:
            from rich.panel import Panel

            self._out.print(Panel(text, title="llava-serve is up", expand=False))
        else:
            self._out.print(f"llava-serve is up\n{text}", soft_wrap=True)
        # Print the commands outside the panel and without line breaks so that they can be copied.
        examples = commands(plan, model, example_image(Path.cwd()))
        if private_url:
            examples["another worker of this server"] = _worker_command(plan, private_url)
        for name, command in examples.items():
            self._out.print(_escape(f"\n# {name}\n{command}"), soft_wrap=True)
        if plan.model == "tiny":
            self._out.print(_escape(f"\n{_REAL_MODEL}"), soft_wrap=True)

    def tail(self, lines: Sequence[str]) -> None:
        """Print the last output lines of a child that failed, unless ``--verbose`` has already shown them."""
        if not self._is_verbose:
            for line in lines:
                self._err.print(_escape(f"  {line}"), soft_wrap=True)


def _console(*, is_stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=is_stderr, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def example_image(folder: Path) -> str:
    """Return the image path for the curl command: the first image in ``examples/``, or a placeholder."""
    found = sorted(path for pattern in _IMAGES for path in (folder / "examples").glob(pattern))
    return str(found[0].relative_to(folder)) if found else "photo.png"


def commands(plan: LaunchPlan, model: str, image: str) -> dict[str, str]:
    """Return shell commands that send a request with curl, this client and the openai package."""
    key = plan.generated_key
    # JSON strings are Python strings too. Double quotes need no escapes in the shell's single quotes.
    arguments = ", ".join(json.dumps(each) for each in (plan.base_url, key) if each)
    ask = f"Client({arguments}).chat({json.dumps(_QUESTION)}, image={json.dumps(image)})"
    messages = '[{"role": "user", "content": "What can you do?"}]'
    create = f"openai.OpenAI().chat.completions.create(model={json.dumps(model)}, messages={messages})"
    chat = f"import openai; print({create}.choices[0].message.content)"
    python = shlex.quote(sys.executable)
    variables = f"OPENAI_BASE_URL={plan.base_url}/v1 OPENAI_API_KEY={key or 'none'}"
    openai = f"the openai package (install it with {python} -m pip install openai)"
    return {
        "curl": _curl_command(plan, model, image),
        "Python": f"{python} -c {shlex.quote(f'from llava_client import Client; print({ask})')}",
        openai: f"{variables} {python} -c {shlex.quote(chat)}",
    }


def _worker_command(plan: LaunchPlan, redis_url: str) -> str:
    """Return a shell command that adds a worker to the server of ``plan``."""
    return f"LLAVA_REDIS_URL={shlex.quote(redis_url)} {shlex.join(plan.worker_command)}"


def _curl_command(plan: LaunchPlan, model: str, image: str) -> str:
    """Return a curl command that asks about ``image``.

    It works in sh, bash and zsh, with either GNU or BSD tools.
    """
    # The server detects the image format from the bytes, so the media type in the URL does not have to match.
    before = f'{{"model": {json.dumps(model)}, "messages": [{{"role": "user", "content": ['
    before += '{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
    after = '"}}, {"type": "text", "text": ' + json.dumps(_QUESTION) + "}]}]}"
    encoded = f'"$(base64 < {shlex.quote(image)} | tr -d "\\n")"'
    key = f" -H 'Authorization: Bearer {plan.generated_key}'" if plan.generated_key else ""
    return (
        f"curl -s {plan.base_url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d '{before}'{encoded}'{after}'"
    )
