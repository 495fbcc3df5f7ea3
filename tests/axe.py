"""Checks a page with axe-core, which finds violations of the Web Content Accessibility Guidelines."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from playwright.sync_api import Page

__all__ = ["findings"]

_AXE = (files("axe_playwright_python") / "axe.min.js").read_text()


def findings(page: Page) -> list[str]:
    """Return the serious and critical findings of axe: rule, element and explanation."""
    page.evaluate(_AXE)
    violations: list[dict[str, Any]] = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
