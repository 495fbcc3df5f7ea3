"""Reports errors as one-line messages on stderr and as exit codes that scripts can check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from llava_client.errors import (
    APIConnectionError,
    AuthenticationError,
    ConfigurationError,
    ImageError,
    LlavaError,
    PermissionDeniedError,
    RateLimitError,
    ServiceUnavailableError,
)

from llava_cli.printing import sanitize
from llava_cli.streams import discard_output

__all__ = [
    "EXIT_AUTH",
    "EXIT_BUSY",
    "EXIT_CODES",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "exit_code",
    "fail",
    "handle_errors",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_AUTH = 4
EXIT_BUSY = 5
EXIT_INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 success; 1 failure of some or all requests; 2 invalid usage or unreadable image; "
    "3 connection failed or lost; 4 API key missing or rejected; 5 server busy, retry later; "
    "130 interrupted by Ctrl-C."
)

# The first match wins, so a subclass must precede its base class.
_CODES: tuple[tuple[type[LlavaError], int], ...] = (
    (ConfigurationError, EXIT_USAGE),
    (ImageError, EXIT_USAGE),
    (APIConnectionError, EXIT_UNREACHABLE),
    (AuthenticationError, EXIT_AUTH),
    (PermissionDeniedError, EXIT_AUTH),
    (RateLimitError, EXIT_BUSY),
    (ServiceUnavailableError, EXIT_BUSY),
)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Print ``message`` as one line on stderr and exit with ``code``."""
    typer.echo(f"llava-serve: {sanitize(' '.join(message.split()))}", err=True)
    raise typer.Exit(code)


@contextmanager
def handle_errors() -> Iterator[None]:
    """Exit with a documented code after a LlavaError, Ctrl-C or a closed pipe.

    The message of a LlavaError is printed as one line on stderr.
    """
    try:
        yield
    except LlavaError as exc:
        fail(str(exc), exit_code(exc))
    except KeyboardInterrupt:
        typer.echo(err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        discard_output()  # in `ask ... | head -1`, `head` closes the pipe early
        raise typer.Exit(EXIT_FAILED) from None


def exit_code(error: LlavaError) -> int:
    """Return the documented exit code for ``error``."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_FAILED)
