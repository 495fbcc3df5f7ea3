"""A corrupt checkpoint file is rejected before any tensor is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import CheckpointError
from llava_worker.model.loading.checkpoint_files import read_file
from safetensors.torch import save_file

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def test_rows_are_read_as_they_were_saved(path: Path) -> None:
    tensors = {"a": torch.randn(5, 2, 3), "b": torch.randn(7).bfloat16(), "c": torch.arange(4)}
    save_file(tensors, path)

    stored = {tensor.name: tensor for tensor in read_file(path, allow_pickle=False)}

    assert stored.keys() == tensors.keys()
    assert torch.equal(stored["a"].read(1, 4), tensors["a"][1:4])
    assert torch.equal(stored["b"].read(0, 7), tensors["b"])
    assert [stored[name].is_plain for name in "abc"] == [True, True, False]


def descriptors_of(path: Path) -> list[Path]:
    return [each for each in Path("/proc/self/fd").iterdir() if each.exists() and each.samefile(path)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="requires /proc")
def test_a_file_is_open_while_its_tensors_are_used_and_all_tensors_are_read_from_the_same_file(
    path: Path,
) -> None:
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    stored = read_file(path, allow_pickle=False)
    assert not descriptors_of(path)
    assert torch.equal(stored[0].read(0, 4), torch.ones(4))

    moved = path.rename(path.with_suffix(".moved"))
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, path)
    assert torch.equal(stored[1].read(0, 4), torch.ones(4))
    assert len(descriptors_of(moved)) == 1

    stored.clear()
    assert not descriptors_of(moved)


def test_an_invalid_header_is_rejected(path: Path) -> None:
    headers: list[tuple[object, str]] = [
        (b"{", "is not valid JSON"),
        (3, "does not contain a JSON object"),
        ({"a": ENTRY | {"dtype": "F3"}}, "the header entry of 'a' is not supported"),
        ({"a": {"shape": [2]}}, "the header entry of 'a' is not supported"),
        ({"a": ENTRY | {"shape": [2, 4]}}, "does not match its shape"),
        ({"a": ENTRY | {"shape": [-2, -3]}}, "the shape of 'a' must consist of"),
        ({"a": ENTRY | {"data_offsets": [-24, 0]}}, "does not match its shape"),
        ({"a": ENTRY | {"data_offsets": [8, 32]}}, "extends beyond the end of the file"),
    ]
    for header, reason in headers:
        message = rf"a.safetensors .*{reason}"
        with pytest.raises(CheckpointError, match=message):
            read_file(write(path, header), allow_pickle=False)


def test_a_file_shorter_than_its_header_is_rejected(path: Path) -> None:
    for content in (b"", b"1234", (1 << 40).to_bytes(8, "little")):
        path.write_bytes(content)

        with pytest.raises(CheckpointError, match="the header is longer than the file"):
            read_file(path, allow_pickle=False)


def test_a_file_that_is_truncated_while_it_is_read_is_detected(path: Path) -> None:
    (tensor,) = read_file(write(path, {"a": ENTRY}), allow_pickle=False)
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(CheckpointError, match="the file was truncated while it was being read"):
        tensor.read(0, 2)


def test_a_missing_file_is_named_in_the_error(path: Path) -> None:
    with pytest.raises(CheckpointError, match="a.safetensors does not exist"):
        read_file(path, allow_pickle=False)
