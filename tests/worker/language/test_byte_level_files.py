"""Tokenizers are read from vocab.json and merges.txt, as transformers' slow tokenizers wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llava_worker.language.hf_tokenizer import HFTokenizer, has_tokenizer, tokenizer_files
from llava_worker.language.tokenizer import TokenizerError
from llava_worker.language.tokenizer_check import TokenizerCheck
from transformers import AutoTokenizer

from tests.worker.byte_level_tokenizer import END, write_tokenizer_files

CLASSES = ("CodeGenTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer")


@pytest.fixture(scope="module", params=CLASSES)
def tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HFTokenizer, Any]:
    folder = write_tokenizer_files(tmp_path_factory.mktemp("files"), request.param)
    return HFTokenizer(folder), AutoTokenizer.from_pretrained(folder)


@given(text=st.text(st.sampled_from("the 12's\n\té好.A  "), max_size=40) | st.text(max_size=20))
def test_texts_have_the_tokens_of_transformers(tokenizers: tuple[HFTokenizer, Any], text: str) -> None:
    actual, expected = tokenizers
    assert actual.encode(text) == expected.encode(text, add_special_tokens=False)


def test_the_end_token_is_special(tokenizers: tuple[HFTokenizer, Any]) -> None:
    tokenizer, reference = tokenizers
    assert tokenizer.special_id(END) == reference.convert_tokens_to_ids(END)
    assert tokenizer.special_id(END) not in tokenizer.encode(END)


def test_the_digest_of_the_model_depends_on_both_files(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, CLASSES[0])
    assert {path.name for path in tokenizer_files(tmp_path)} == {
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    }


def test_a_folder_with_only_one_of_the_files_has_no_tokenizer(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, CLASSES[0])
    assert has_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    assert not has_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"contains no tokenizer: .* Copy these files"):
        HFTokenizer(tmp_path)


def test_invalid_files_are_rejected_with_the_problem(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer_class is 'BertTokenizer'. Only GPT2Tokenizer"):
        HFTokenizer(write_tokenizer_files(tmp_path, "BertTokenizer"))
    for tokens in (None, {"x": {"content": "a"}}, {"1": "a"}, [1]):
        with pytest.raises(TokenizerError, match="added_tokens_decoder must map token IDs to objects"):
            HFTokenizer(write_tokenizer_files(tmp_path, CLASSES[0], added_tokens_decoder=tokens))
    with pytest.raises(TokenizerError, match="'a new token' .* has the ID 5000, but the next ID"):
        HFTokenizer(
            write_tokenizer_files(
                tmp_path, CLASSES[0], added_tokens_decoder={"5000": {"content": "a new token"}}
            )
        )
    write_tokenizer_files(tmp_path, CLASSES[0])
    for name, text in (
        ("merges.txt", "x yz q\n"),
        ("merges.txt", "notknown either\n"),
        ("vocab.json", '{"a": "b"}'),
    ):
        backup = tmp_path / "backup"
        shutil.copy(tmp_path / name, backup)
        (tmp_path / name).write_text(text)
        with pytest.raises(TokenizerError, match="are not a valid vocabulary"):
            HFTokenizer(tmp_path)
        shutil.copy(backup, tmp_path / name)


def test_files_that_crash_the_library_are_found_in_a_sandbox(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, CLASSES[0])
    check = TokenizerCheck()
    try:
        check.check(tmp_path)
        (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
        (tmp_path / "merges.txt").write_text("a b")
        # tokenizers 0.22.1, the oldest supported version, reports an error instead of crashing.
        with pytest.raises(
            TokenizerError, match=r"vocab\.json (makes .* crash|and .* not a valid vocabulary)"
        ):
            check.check(tmp_path)
    finally:
        check.close()
