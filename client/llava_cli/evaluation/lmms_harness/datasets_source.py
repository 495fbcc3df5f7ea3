"""Loads datasets from a local folder, or from Hugging Face's hub if the folder does not contain them.

The dataset ``OWNER/NAME`` is in ``FOLDER/OWNER/NAME``, and its configuration ``CONFIG``, if it has one, in
the subfolder ``CONFIG``. Both can have a subfolder ``data``. These are the places that the hub uses too. A
split is stored as one of:

- Parquet files named ``SPLIT-*.parquet`` or ``SPLIT.parquet``, as the hub stores it,
- a folder ``SPLIT`` that contains image files and ``metadata.jsonl``, which has one line per row. The column
  ``file_name`` is the path of the image, relative to ``metadata.jsonl``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .events import Events

__all__ = ["DatasetsSource"]

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


class DatasetsSource:
    """Replaces ``datasets.load_dataset``, because some tasks of lmms-eval call it themselves."""

    def __init__(self, folder: str | None, events: Events) -> None:
        self._folder = Path(folder).absolute() if folder else None
        self._events = events

    def install(self) -> None:
        """Call this before lmms-eval is imported."""
        import datasets

        datasets.load_dataset = self._wrap(datasets.load_dataset)

    def files(self, name: str, config: str | None) -> dict[str, list[Path]]:
        """Return the files of each split of a local dataset. Empty if the dataset is not local.

        For a split with ``metadata.jsonl``, this is the only file.
        """
        if self._folder is None:
            return {}
        root = self._folder / name
        places = [root / config, root / config / "data"] if config else []
        for place in (*places, root / "data", root):
            if found := _splits(place):
                return found
        return {}

    def missing(self, name: str, config: str | None, split: str) -> str:
        """Return which files have to be stored where."""
        root = Path(name, *([config] if config else []))
        place = (self._folder or Path("FOLDER")) / root
        option = "" if self._folder else ", and pass --data FOLDER"
        return (
            f"Store its Parquet files as {str(place / f'{split}-*.parquet')!r}, or its images with a file "
            f"metadata.jsonl in {str(place / split)!r}{option}. On a machine with access to the hub, "
            f"`hf download --repo-type dataset {name} --local-dir {self._folder or 'FOLDER'}/{name}` "
            "downloads them."
        )

    def _wrap(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def load_dataset(path: str, name: str | None = None, *args: Any, **options: Any) -> Any:
            files = self.files(path, name)
            if files:
                chosen = {key: options[key] for key in ("split", "cache_dir") if key in options}
                complete = {split: _with_images(paths) for split, paths in files.items()}
                data_files = {split: [str(each) for each in paths] for split, paths in complete.items()}
                return load(_builder(complete), data_files=data_files, **chosen)
            return self._download(load, path, name, *args, **options)

        return load_dataset

    def _download(
        self, load: Callable[..., Any], path: str, name: str | None, *args: Any, **options: Any
    ) -> Any:
        from huggingface_hub import get_token

        if get_token() is None:
            options.pop("token", None)  # lmms-eval requires a token, but most datasets are public
        try:
            return load(path, name, *args, **options)
        except Exception as error:  # of any type, from the hub's client, its HTTP client or datasets
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            advice = self.missing(path, name, options.get("split") or "SPLIT")
            return self._events.fail(
                f"The dataset {path!r} cannot be loaded from the hub: {reason}. {advice}"
            )


def _splits(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        found.setdefault(_SHARD.sub("", path.stem), []).append(path)
    if not found:
        found = {path.parent.name: [path] for path in sorted(folder.glob("*/metadata.jsonl"))}
    return found


def _builder(files: dict[str, list[Path]]) -> str:
    """Return the name of the loader in ``datasets`` for these files."""
    first = next(iter(files.values()))
    if first[0].suffix == ".parquet":
        return "parquet"
    return "imagefolder" if len(first) > 1 else "json"


def _with_images(files: list[Path]) -> list[Path]:
    if files[0].name != "metadata.jsonl":
        return files
    return sorted(path for path in files[0].parent.rglob("*") if path.is_file())
