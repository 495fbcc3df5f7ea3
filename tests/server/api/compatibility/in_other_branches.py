"""Fields that the request models do not define yet. A test fails if one of them is defined."""

from __future__ import annotations

__all__ = ["IN_OTHER_BRANCHES"]

IN_OTHER_BRANCHES: set[tuple[str, str]] = set()
