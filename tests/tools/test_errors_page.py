"""docs/reference/errors.md lists every message that clients can receive, with its text in the source code."""

from __future__ import annotations

import pytest
from errors_page import BATCH_CODES, BATCH_PAGE, PAGE, Message, catalogue, fill, fill_batches, messages_of
from llava_server.errors import ERRORS


def found(source: str) -> set[tuple[str, str]]:
    return {(message.code, message.template) for message in messages_of([source], "server")}


def test_the_page_lists_the_messages_of_the_source_code() -> None:
    page = PAGE.read_text("utf-8")
    assert fill(page, catalogue()) == page, "run python tools/errors_page.py"


def test_the_catalogue_has_messages_of_each_package_with_their_status() -> None:
    messages = catalogue()
    assert {message.package for message in messages} == {"server", "wire", "worker"}
    assert len(messages) > 100
    assert {message.status for message in messages if message.code == "too_many_images"} == {400}


def test_the_batch_page_lists_the_errors_of_batches() -> None:
    page = BATCH_PAGE.read_text("utf-8")
    assert fill_batches(page, catalogue()) == page, "run python tools/errors_page.py"


def test_every_error_code_has_a_message() -> None:
    assert {message.code for message in catalogue()} == {*ERRORS, *BATCH_CODES}


def test_a_changed_message_changes_the_page() -> None:
    page = PAGE.read_text("utf-8")
    message = Message("no_worker", "There is no {thing}.", "server")
    assert "- There is no {thing}. *(server)*" in fill(page, [*catalogue(), message])
    assert message.fields == ("thing",)


def test_a_section_without_a_marked_part_is_an_error() -> None:
    with pytest.raises(SystemExit, match="section no_worker must contain the markers"):
        fill("# Errors\n\n## no_worker\n\nText.\n", [])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('raise ApiError("queue_full", f"Full: {limits.max_jobs} jobs.")', "Full: {max_jobs} jobs."),
        ('text = "Full of jobs."\nraise ApiError("queue_full", text)', "Full of jobs."),
        (
            '_UNIT = "jobs at most"\nraise ApiError("queue_full", f"Full: 3 {_UNIT}.")',
            "Full: 3 jobs at most.",
        ),
        (
            'def _full(text):\n    return ApiError("queue_full", text)\nraise _full("Full of jobs.")',
            "Full of jobs.",
        ),
        ('raise QueueFull("Full of jobs.", retry_after_s=1.0)', "Full of jobs."),
        ('JobError(code=ErrorCode.QUEUE_FULL, message="Full of jobs.")', "Full of jobs."),
        ('table = {"full": ("queue_full", "Full of jobs.")}', "Full of jobs."),
    ],
)
def test_a_message_is_found_however_the_code_passes_it_on(source: str, expected: str) -> None:
    assert found(source) == {("queue_full", expected)}


def test_both_texts_of_a_conditional_message_are_found() -> None:
    source = 'raise ApiError("queue_full", "Full of jobs." if is_jobs else "Full of files.")'
    assert found(source) == {("queue_full", "Full of jobs."), ("queue_full", "Full of files.")}


def test_a_text_that_is_no_error_message_is_not_listed() -> None:
    assert found('log("queue_full", "The queue is full.")\nraise ApiError("queue_full", str(error))') == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('raise CommandRefused("No models.")', ("order_refused", "No models.")),
        (
            'raise UnsupportedGrammar("it is long")',
            ("invalid_request", "The {kind} cannot be enforced: it is long."),
        ),
        (
            'Unsupported("Use another field.")',
            ("unsupported_parameter", "{name} is not supported. Use another field."),
        ),
        ('BatchIssue("empty_file", "No lines here.", 3)', ("empty_file", "No lines here.")),
    ],
)
def test_a_message_includes_the_text_that_is_added_later(source: str, expected: tuple[str, str]) -> None:
    assert found(source) == {expected}
