"""The process's limit on open files, which limits the number of connections."""

from __future__ import annotations

import logging
import resource

__all__ = ["OpenFilesError", "allowed_connections"]

logger = logging.getLogger(__name__)

_RESERVED = 96  # for Redis, the image decoders, image downloads, the admin port and the log
_MIN_CONNECTIONS = 16


class OpenFilesError(Exception):
    """The limit on open files is too low to serve clients."""


def allowed_connections(max_connections: int) -> int:
    """Raise the limit on open files to the hard limit, and return how many connections it allows.

    The result is at most ``max_connections``. Raises OpenFilesError.
    """
    limit = _raise_limit(max_connections + _RESERVED)
    allowed = min(max_connections, limit - _RESERVED)
    if allowed < _MIN_CONNECTIONS:
        raise OpenFilesError(
            f"The limit on open files is {limit} (ulimit -n), but the server needs at least "
            f"{_RESERVED + _MIN_CONNECTIONS}. Raise the limit."
        )
    if allowed < max_connections:
        logger.warning(
            "the limit on open files is %d (ulimit -n), so at most %d connections are accepted instead of %d",
            limit,
            allowed,
            max_connections,
        )
    return allowed


def _raise_limit(needed: int) -> int:
    """Raise the soft limit as far as possible and return it, or ``needed`` if there is no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return needed
    target = max(soft, needed if hard == resource.RLIM_INFINITY else hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError):  # macOS has another limit, which is not the hard limit
        return soft
    return target
