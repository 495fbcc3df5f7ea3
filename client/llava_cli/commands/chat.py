"""``llava-serve chat [PHOTO]``: an interactive conversation in the terminal.

In a terminal, Ctrl-C stops the current response but not the program. The part of the response that was
already received stays in the conversation. If stdin or stdout is not a terminal, no prompts are printed, and
Ctrl-C or an error ends the program.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from llava_client.client import Client
from llava_client.conversation import Conversation
from llava_client.errors import ImageError, LlavaError
from llava_client.images import image_url

from llava_cli.exit_codes import exit_code, handle_errors
from llava_cli.options import ApiKey, BaseUrl, Format, MaxTokens, ModelName, System, Temperature
from llava_cli.printing import print_delta, sanitize

__all__ = ["chat"]

_HELP = """/image PATH   add an image to the next question
/reset        clear the conversation
/quit         quit (also Ctrl-D)
Ctrl-C        stop the response"""


def chat(
    photo: Annotated[str | None, typer.Argument(help="Image for the first question: a path or URL.")] = None,
    model: ModelName = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    system: System = None,
    format: Format = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Chat about images interactively."""
    with handle_errors(), Client(base_url, api_key) as client:
        conversation = client.conversation(
            image=image_url(photo) if photo else None,
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            system=system,
            format=format,
        )
        code = _ChatLoop(conversation, is_terminal=sys.stdin.isatty() and sys.stdout.isatty()).run()
    if code:
        raise typer.Exit(code)


class _ChatLoop:
    """The loop that reads and processes input lines.

    If a question fails, the error is printed. In a terminal, the loop then continues. Otherwise, it ends.
    """

    def __init__(self, conversation: Conversation, *, is_terminal: bool) -> None:
        self._conversation = conversation
        self._is_terminal = is_terminal
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._show_image,
            "/reset": self._reset,
            "/help": lambda _: typer.echo(_HELP),
        }

    def run(self) -> int:
        """Process input lines until the loop ends, and return the exit code."""
        if self._is_terminal:
            import readline  # noqa: F401  adds line editing and history to input()

            typer.echo("/image PATH, /reset, /quit, /help")
        while (line := self._read()) is not None:
            failure = self._run_line(line)
            if failure and not self._is_terminal:
                return exit_code(failure)
        return 0

    def _run_line(self, line: str) -> LlavaError | None:
        """Run a command or ask a question. If this fails, print and return the error."""
        try:
            self._dispatch(line)
        except LlavaError as exc:
            typer.echo(f"llava-serve: {sanitize(str(exc))}", err=True)
            return exc
        return None

    def _read(self) -> str | None:
        """Return the next non-empty line, or None if the user quits or the input ends."""
        while True:
            try:
                line = input("you> " if self._is_terminal else "").strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                typer.echo("\nPress Ctrl-D or enter /quit to quit.")
                continue
            if line == "/quit":
                return None
            if line:
                return line

    def _dispatch(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/"):
            typer.echo(f"Unknown command {word}. Commands:\n{_HELP}", err=True)
        else:
            self._ask(line)

    def _ask(self, question: str) -> None:
        try:
            with self._conversation.stream(question) as stream:
                for delta in stream:
                    print_delta(delta)
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            typer.echo(" [stopped]", nl=False)
        typer.echo()

    def _show_image(self, path: str) -> None:
        if not path:
            raise ImageError("/image requires a path or URL.")
        self._conversation.show(image_url(path))

    def _reset(self, _: str) -> None:
        self._conversation.reset()
