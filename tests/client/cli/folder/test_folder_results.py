"""The results of ``llava-serve batch --images``: which images are sent, and what is written."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import pytest

from tests.client.cli.folder.image_folder import (
    add_images,
    digest_of,
    png,
    read_results,
    returns_digest,
    run_batch,
)
from tests.client.scripted_server import ScriptedServer, returns_error
from tests.server.conftest import OwnStack, Stack


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    add_images(tmp_path / "photos", 3)
    return tmp_path / "photos"


def test_each_result_belongs_to_its_image(server: ScriptedServer, tmp_path: Path) -> None:
    add_images(tmp_path / "photos", 50)
    server.script(*[returns_digest] * 50)
    run_batch(server.url, tmp_path / "photos", tmp_path / "out.jsonl", "--concurrency", "8")
    for record in read_results(tmp_path / "out.jsonl"):
        assert record["text"] == record["sha256"] == digest_of(tmp_path / "photos" / record["image"])


def test_settings_are_sent_at_low_priority_and_stored(
    server: ScriptedServer, photos: Path, tmp_path: Path
) -> None:
    run_batch(server.url, photos, tmp_path / "out.jsonl", "--max-tokens", "7", "--choice", "a", "-m", "x")
    body = server.last_body
    sent = (body["max_tokens"], body["guided_choice"], body["model"], body["service_tier"])
    assert sent == (7, ["a"], "x", "flex")
    [record, *_] = read_results(tmp_path / "out.jsonl")
    assert (record["model"], record["settings"]) == ("x", {"max_tokens": 7, "guided_choice": ["a"]})


def test_subfolders_are_included_but_hidden_files_and_other_files_are_not(
    server: ScriptedServer, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in ("b/2.PNG", "a.jpg", ".hidden/1.png", "no_extension", "b/.x.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(1))
    (folder / "README").write_text("not an image")
    (folder / "cycle").symlink_to(folder)
    (folder / "link.png").symlink_to(folder / "a.jpg")
    os.mkfifo(folder / "pipe.png")
    assert run_batch(server.url, folder, tmp_path / "out.jsonl").exit_code == 0
    names = [record["image"] for record in read_results(tmp_path / "out.jsonl")]
    assert names == ["a.jpg", "b/2.PNG", "link.png", "no_extension"]


def test_failed_images_are_stored_with_their_error_and_retried(stack: Stack, photos: Path) -> None:
    output = photos.parent / "out.jsonl"
    (photos / "broken.png").write_bytes(png(0)[:30])
    (photos / "empty.png").write_bytes(b"")
    (photos / "missing.png").symlink_to(photos / "nothing")
    (photos / "text.jpg").write_text("<html>")
    failed = run_batch(stack.server.url, photos, output)
    assert failed.exit_code == 1
    assert "3 of 7 images succeeded, 4 failed" in failed.stderr
    errors = {record["image"]: record["error"] for record in read_results(output) if record["error"]}
    assert list(errors) == ["broken.png", "empty.png", "missing.png", "text.jpg"]
    assert "No such file" in errors["missing.png"]
    assert errors["empty.png"] == "The file is empty."
    assert errors["text.jpg"] == "The file is not an image: it begins with b'<html>'."
    for name in errors:
        (photos / name).unlink()
        (photos / name).write_bytes(png(1))
    stack.worker.assignments.clear()
    assert run_batch(stack.server.url, photos, output).exit_code == 0
    assert len(stack.worker.assignments) == 4
    assert [(record["text"], record["error"]) for record in read_results(output)] == [("yes", None)] * 7


def test_an_image_that_is_too_large_for_the_server_fails_alone(
    own_stack: OwnStack, photos: Path, tmp_path: Path
) -> None:
    url = own_stack(max_body_mb=1).server.url
    (photos / "large.png").write_bytes(png(0) + bytes(24 * 2**20))
    with (photos / "huge.png").open("wb") as file:
        file.truncate(2**30)
    assert run_batch(url, photos, tmp_path / "out.jsonl").exit_code == 1
    *complete, huge, large = read_results(tmp_path / "out.jsonl")
    assert [record["text"] for record in complete] == ["yes"] * 3
    assert "1,073,741,824 bytes" in huge["error"]
    assert "the limit is 1048576" in large["error"]


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "num_requests"),
    [
        (401, "invalid_api_key", 4, 1),
        (404, "model_not_found", 1, 1),
        (408, "queue_timeout", 1, 1),
        (502, None, 1, 1),  # from a proxy
        (500, "worker_crashed", 1, 3),  # possibly because of the image
        (503, "insufficient_memory", 1, 3),
        (400, "invalid_image", 1, 3),
    ],
)
def test_only_errors_that_do_not_depend_on_the_image_stop_the_run(
    server: ScriptedServer,
    photos: Path,
    tmp_path: Path,
    status: int,
    code: str | None,
    exit_code: int,
    num_requests: int,
) -> None:
    server.script(*[returns_error(status, "failed", code=code, x_should_retry="false")] * 3)
    done = run_batch(server.url, photos, tmp_path / "out.jsonl", "-c", "1")
    assert (done.exit_code, len(server.chats)) == (exit_code, num_requests)
    assert ("images remain" in done.stderr) == (num_requests == 1)


def test_an_invalid_setting_stops_the_run(stack: Stack, photos: Path, tmp_path: Path) -> None:
    done = run_batch(stack.server.url, photos, tmp_path / "out.jsonl", "--temperature", "9")
    assert (done.exit_code, read_results(tmp_path / "out.jsonl")) == (1, [])
    assert "temperature: input should be less than or equal to 2" in done.stderr


def test_a_changed_image_is_sent_again_but_one_that_was_only_touched_is_not(
    server: ScriptedServer, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run_batch(server.url, photos, output)
    (photos / "0001.png").write_bytes(png(77))
    os.utime(photos / "0001.png", (0, 0))
    os.utime(photos / "0002.png", (0, 0))
    server.requests.clear()
    changed = run_batch(server.url, photos, output)
    assert (changed.exit_code, len(server.chats)) == (0, 1)
    assert "changed since the last run and are sent again: 1." in changed.stderr
    assert [record["image"] for record in read_results(output)] == ["0000.png", "0001.png", "0002.png"]
    assert read_results(output)[1]["sha256"] == digest_of(photos / "0001.png")


def test_results_of_another_request_or_other_images_are_not_mixed(
    server: ScriptedServer, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run_batch(server.url, photos, output, "--max-tokens", "7")
    before = output.read_bytes()
    add_images(tmp_path / "others", 1)
    (tmp_path / "others" / "0000.png").rename(tmp_path / "others" / "z.png")
    for folder, arguments, prompt, message in [
        (photos, ["--max-tokens", "7"], "say no", "has results with prompt 'say yes', but this command has"),
        (photos, [], "say yes", "has results with max_tokens 7, but this command has no max_tokens"),
        (photos, ["--max-tokens", "7", "-m", "b"], "say yes", "model 'tiny-llava', but this command has"),
        (tmp_path / "others", ["--max-tokens", "7"], "say yes", "has results for other images"),
    ]:
        mixed = run_batch(server.url, folder, output, *arguments, prompt=prompt)
        assert (mixed.exit_code, message in mixed.stderr) == (2, True), mixed.stderr
        assert output.read_bytes() == before
    # A run without --model continues with the model of the earlier run.
    (photos / "new.png").write_bytes(png(5))
    server.models = ["other"]
    assert run_batch(server.url, photos, output, "--max-tokens", "7").exit_code == 0
    assert {record["model"] for record in read_results(output)} == {"tiny-llava"}


def test_csv_has_the_same_content_as_the_json_lines(server: ScriptedServer, photos: Path) -> None:
    output = photos.parent / "out.csv"
    (photos / os.fsdecode(b'na\xefve,"\n.png')).write_bytes(b"")
    assert run_batch(server.url, photos, output, "--max-tokens", "7").exit_code == 1
    records = read_results(output.with_suffix(".jsonl"))
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["image"] == 'na\\udcefve,"\n.png'
    assert rows[0]["settings"] == '{"max_tokens": 7}'
    for row, record in zip(rows, records, strict=True):
        assert list(row) == list(record)
        for name in ("text", "finish_reason", "error", "prompt", "model", "size", "modified_ns", "sha256"):
            assert row[name] == ("" if record[name] is None else str(record[name]))


def test_complete_results_are_converted_without_a_server(server: ScriptedServer, photos: Path) -> None:
    run_batch(server.url, photos, photos.parent / "out.jsonl")
    done = run_batch("http://127.0.0.1:9", photos, photos.parent / "out.csv")
    assert (done.exit_code, len((photos.parent / "out.csv").read_text().splitlines())) == (0, 4)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_is_rejected_before_any_request(server: ScriptedServer, photos: Path) -> None:
    done = run_batch(server.url, photos, photos.parent / "out.parquet")
    assert (done.exit_code, "pip install pyarrow" in done.stderr, server.requests) == (2, True, [])


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_has_the_same_content_as_the_json_lines(server: ScriptedServer, photos: Path) -> None:
    from pyarrow import parquet

    output = photos.parent / "out.parquet"
    (photos / "empty.png").write_bytes(b"")
    run_batch(server.url, photos, output, "--max-tokens", "7")
    records = read_results(output.with_suffix(".jsonl"))
    rows = parquet.read_table(output).to_pylist()
    assert rows == [{**record, "settings": '{"max_tokens": 7}'} for record in records]


def test_the_contact_sheet_links_the_images_and_escapes_all_text(
    server: ScriptedServer, tmp_path: Path
) -> None:
    folder, page = tmp_path / "my photos", tmp_path / "pages" / "out.html"
    page.parent.mkdir()
    add_images(folder, 1)
    (folder / "<b> #1?.png").write_bytes(png(2))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    prompt = "<script>alert(1)</script>"
    run_batch(server.url, folder, tmp_path / "out.jsonl", "--contact-sheet", str(page), prompt=prompt)
    text = page.read_text(encoding="utf-8")
    for expected in (
        'src="../my%20photos/0000.png"',
        'src="../my%20photos/%3Cb%3E%20%231%3F.png"',
        'src="../my%20photos/%FF.png"',
        "&lt;b&gt; #1?.png",
        "<h1>&lt;script&gt;alert(1)&lt;/script&gt;</h1>",
        "A red circle — très bien.",
    ):
        assert expected in text
    assert "<script" not in text
    assert "://" not in text
    assert text.count('loading="lazy"') == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "none", "--prompt", "a", "--out", "o.jsonl"], "'none' does not exist."),
        (["--images", "file", "--prompt", "a", "--out", "o.jsonl"], "'file' is not a folder."),
        (["--images", "empty", "--prompt", "a", "--out", "o.jsonl"], "contains no images."),
        (["--images", "photos", "--out", "o.jsonl"], "--images requires --prompt"),
        (["--images", "photos", "--prompt", " ", "--out", "o.jsonl"], "--images requires --prompt"),
        (["--images", "photos", "--prompt", "a", "--out", "o.xlsx"], "Use .jsonl, .csv, .parquet."),
        (["--images", "photos", "--prompt", "a", "--out", "file"], "Use .jsonl, .csv, .parquet."),
        (["--images", "photos", "--prompt", "a", "--out", "no/o.csv"], "Cannot write 'no/o.jsonl.lock'"),
        (["--images", "photos", "--prompt", "a", "--out", "other.jsonl"], "Line 1 of 'other.jsonl'"),
        (["--images", "photos", "--prompt", "a", "--contact-sheet", "a"], "must have the extension .html"),
        (["--images", "photos", "--prompt", "a", "--contact-sheet", "x/a.html"], "folder does not exist"),
        (["--images", "photos", "--prompt", "a", "file"], "--images cannot be combined"),
        (["file", "--prompt", "a"], "apply without --images"),
        ([], "Pass a JSONL file, a batch ID, or --images"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line_before_any_request(
    server: ScriptedServer,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    from llava_cli import create_app
    from typer.testing import CliRunner

    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    Path("file").write_text("")
    Path("other.jsonl").write_text('{"a": 1}\n')
    done = CliRunner().invoke(create_app(), ["batch", *arguments, "--base-url", server.url])
    assert done.exit_code in (1, 2)
    assert (message in done.stderr, done.stderr.count("\n")) == (True, 1), done.stderr
    assert server.requests == []
    assert Path("other.jsonl").read_text() == '{"a": 1}\n'
