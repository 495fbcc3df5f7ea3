"""Update the field names and literal values of other servers' APIs, and list those without a status.

    python tools/update_vocabularies.py [FOLDER]

The packages ``openai`` and ``anthropic`` are read from the development environment. The other sources are
read from FOLDER if it contains them: the packages ``vllm``, ``sglang`` and ``ollama`` from unpacked wheels,
``llama.cpp`` (repository) and ``ollama-server`` (repository of Ollama). Otherwise, a file is not changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vocabularies.files import FOLDER, read, to_text
from vocabularies.sources import INSTALLED, VOCABULARIES, extract
from vocabularies.status import MODELS, is_closed, status_of


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for name in VOCABULARIES:
        if folder is None and name not in INSTALLED:
            continue
        try:
            vocabulary = extract(name, folder or Path(), is_closed)
        except (OSError, LookupError) as error:
            print(f"{name}: not updated ({error})")
            continue
        (FOLDER / f"{name}.txt").write_text(to_text(vocabulary), "utf-8")
    for name in VOCABULARIES:
        for route, fields in read(name).items():
            for path in fields if route in MODELS else ():
                if status_of(route, path) is None:
                    print(f"{name} {route} {path}: add it to the request model or to the rules")


if __name__ == "__main__":
    main()
