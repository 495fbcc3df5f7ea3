"""A checkpoint is converted once, and the duration includes that of the conversions it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serving.conversion import Conversion
from bench.serving.target import Unavailable


class Writer:
    """Creates a file or, if ``is_folder`` is true, a folder with a file."""

    def __init__(self, path: Path, *, is_folder: bool = False) -> None:
        self.path = path / "weights" if is_folder else path
        self.num_calls = 0
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.num_calls += 1
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("x", encoding="utf-8") as file:  # fails if an unfinished result was kept
            file.write("converted")
        if self.error:
            raise self.error


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_conversion_runs_once_and_its_duration_is_kept(tmp_path: Path, is_folder: bool) -> None:
    write = Writer(tmp_path / "result", is_folder=is_folder)
    seconds = Conversion(tmp_path / "result", write).ensure()

    assert Conversion(tmp_path / "result", write).ensure() == seconds
    assert write.num_calls == 1


def test_the_duration_includes_the_conversion_of_the_source(tmp_path: Path) -> None:
    source = Conversion(tmp_path / "q8_0", Writer(tmp_path / "q8_0"))
    result = Conversion(tmp_path / "q4_0", Writer(tmp_path / "q4_0"), source)

    result.ensure()
    for name, seconds in (("q8_0", 30), ("q4_0", 12)):
        (tmp_path / f"{name}.seconds").write_text(f"{seconds}\n", encoding="utf-8")

    assert result.ensure() == 42


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_a_conversion_that_failed_or_whose_result_was_deleted_runs_again(
    tmp_path: Path, is_folder: bool
) -> None:
    write = Writer(tmp_path / "result", is_folder=is_folder)
    conversion = Conversion(tmp_path / "result", write)
    write.error = Unavailable("no space left")
    with pytest.raises(Unavailable):
        conversion.ensure()
    write.error = None

    conversion.ensure()
    write.path.unlink()
    if is_folder:
        write.path.parent.rmdir()
    conversion.ensure()

    assert write.num_calls == 3
