"""A malformed dataset is reported with the file, the line and the expected format."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from llava_cli.evaluation.benchmarks import BENCHMARKS, find_benchmark
from llava_cli.evaluation.lmms_harness.dataset_format import FormatError, check_file
from PIL import Image

from tests.client.cli.evaluation.scene_datasets import write_datasets

HUB = "lmms-lab-encoder"
FILES = {
    "pope": f"{HUB}/POPE/Full/random/metadata.jsonl",
    "vqav2": f"{HUB}/VQAv2/validation/metadata.jsonl",
    "mmbench": f"{HUB}/MMBench/en/dev/metadata.jsonl",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_datasets(folder, 2)
    return folder


def columns(name: str) -> dict[str, Any]:
    benchmark = find_benchmark(name)
    assert benchmark is not None
    return benchmark.columns


@pytest.mark.parametrize("name", FILES)
def test_datasets_of_scenes_have_the_expected_format(data: Path, name: str) -> None:
    check_file(data / FILES[name], columns(name))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pope", {"answer": "maybe"}, "has the answer 'maybe', not 'yes' or 'no'. Each row must have: "),
        ("pope", {"question": ""}, "has the question '', not a non-empty string. Each row"),
        ("pope", {"question": None}, "has the question None, not a non-empty string."),
        ("pope", {"file_name": "no.png"}, "no.png', which does not exist."),
        ("pope", {"file_name": 3}, "has the file_name 3, not a non-empty string"),
        ("pope", {"file_name": "\0"}, "cannot be read: embedded null byte"),
        ("pope", {"file_name": "metadata.jsonl"}, "cannot be read: cannot identify image file"),
        ("vqav2", {"answers": ["red"]}, """has the answers ['red'], not a list of objects with the string"""),
        ("vqav2", {"answers": []}, "has the answers []"),
        ("mmbench", {"answer": "F"}, "has the answer 'F', not 'A' or 'B' or 'C' or 'D'"),
        ("mmbench", {"index": "x"}, "has the index 'x', not an integer"),
    ],
)
def test_an_invalid_value_is_reported_with_the_line(
    data: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    source = data / FILES[name]
    first, second = map(json.loads, source.read_text().splitlines())
    path = source.with_name("changed.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in (first, {**second, **changes})))
    with pytest.raises(FormatError) as error:
        check_file(path, columns(name))
    assert f"{str(path)!r}, line 2" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("line", ["{", "[1]", "text"])
def test_a_line_that_is_not_an_object_is_reported(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(f'{{"a": "b"}}\n{line}\n')
    with pytest.raises(FormatError, match="line 2 is not .*one JSON object per line"):
        check_file(path, {"a": "text"})


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG")])
def test_a_truncated_image_is_reported_with_its_file(tmp_path: Path, suffix: str, kind: str) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, kind)
    name = f"cut{suffix}"
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps({"file_name": name}) + "\n")
    (tmp_path / name).write_bytes(whole.getvalue())
    check_file(path, {"image": "image"})
    (tmp_path / name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(FormatError) as error:
        check_file(path, {"image": "image"})
    assert str(error.value).startswith(
        f"The image {str(tmp_path / name)!r} in {str(path)!r}, line 1 cannot be read: "
    )


def test_a_file_without_rows_is_reported_with_the_expected_format(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.touch()
    with pytest.raises(FormatError) as error:
        check_file(path, {"question": "text"})
    assert str(error.value) == (
        f"{str(path)!r} is empty. The file must contain one JSON object per line. Each row must have: "
        "question (a non-empty string)."
    )


def test_a_missing_column_is_reported_unless_it_is_optional(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"a": "b"}\n')
    check_file(path, {"a": "text", "hint": "optional"})
    with pytest.raises(FormatError, match="line 1 has no 'c'. Each row must have: a .*, c "):
        check_file(path, {"a": "text", "c": "value"})


def test_every_benchmark_states_its_columns() -> None:
    assert len(BENCHMARKS) == 12
    for benchmark in BENCHMARKS:
        assert "question" in benchmark.columns
