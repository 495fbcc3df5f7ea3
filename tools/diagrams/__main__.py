"""Write all diagrams to docs/images: PYTHONPATH=tools python -m diagrams"""

from __future__ import annotations

from pathlib import Path

from diagrams.caches import caches
from diagrams.failover import failover
from diagrams.request_path import request_path
from diagrams.scheduling import scheduling

__all__ = ["DIAGRAMS", "FOLDER"]

FOLDER = Path(__file__).parents[2] / "docs" / "images"
DIAGRAMS = {
    "request-path.svg": request_path,
    "scheduling.svg": scheduling,
    "failover.svg": failover,
    "caches.svg": caches,
}


def main() -> None:
    for name, draw in DIAGRAMS.items():
        (FOLDER / name).write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
