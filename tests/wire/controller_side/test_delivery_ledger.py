"""The ledger delivers each frame exactly once and in order, and requests a resync for unexpected frames."""

from __future__ import annotations

import msgspec
import pytest
from llava_wire.controller_side.delivery_ledger import DeliveryLedger, LiveJob
from llava_wire.messages.event import ErrorCode, Event

from tests.wire.harness import STOP, make_job


def packed(offset: int, *tokens: int, text: str = "", is_end: bool = False) -> bytes:
    return msgspec.msgpack.encode(Event(offset, tokens, text, STOP if is_end else None))


@pytest.fixture
def live() -> LiveJob:
    return LiveJob(make_job(job_id="j"), {}, ttl_s=60)


@pytest.fixture
def ledger(live: LiveJob) -> DeliveryLedger:
    ledger = DeliveryLedger()
    ledger.track(live)
    return ledger


def delivered(ledger: DeliveryLedger) -> list[tuple[int, ...]]:
    return [event.token_ids for _, event in ledger.take_ready()]


def test_frames_in_order_are_delivered(ledger: DeliveryLedger) -> None:
    ledger.receive("j", 0, packed(0, 1), (1, 0))
    ledger.receive("j", 1, packed(1, 2, 3), (2, 0))
    assert delivered(ledger) == [(1,), (2, 3)]
    assert not ledger.jobs_to_resync


def test_a_duplicate_is_skipped_even_without_tokens(ledger: DeliveryLedger) -> None:
    for _ in range(2):
        ledger.receive("j", 0, packed(0, text="a"), (1, 0))
        ledger.receive("j", 1, packed(0, 1), (2, 0))
    assert delivered(ledger) == [(), (1,)]
    assert not ledger.jobs_to_resync


@pytest.mark.parametrize(
    ("index", "payload"),
    [(2, packed(1, 9)), (0, packed(0, 9)), (1, packed(5, 9))],
    ids=["gap", "different frame", "wrong offset"],
)
def test_an_unexpected_frame_is_not_delivered_and_requests_a_resync(
    ledger: DeliveryLedger, index: int, payload: bytes
) -> None:
    ledger.receive("j", 0, packed(0, 1), (1, 0))
    ledger.receive("j", index, payload, (2, 0))
    ledger.receive("j", 1, packed(1, 2), (3, 0))  # nothing is accepted before the resync
    assert delivered(ledger) == [(1,)]
    assert ledger.jobs_to_resync == ("j",)


def test_entries_older_than_a_resync_are_ignored(ledger: DeliveryLedger, live: LiveJob) -> None:
    assert ledger.apply_resync(live, ledger.controller_id, live.epoch, b"running", [], (5, 1))
    ledger.receive("j", 0, packed(0, 9), (5, 1))
    assert not ledger.has_ready
    ledger.receive("j", 0, packed(0, 1), (5, 2))
    assert delivered(ledger) == [(1,)]


def test_a_resync_delivers_the_tail_of_the_log(ledger: DeliveryLedger, live: LiveJob) -> None:
    ledger.receive("j", 3, packed(3, 9), (1, 0))
    assert ledger.apply_resync(
        live, ledger.controller_id, live.epoch, b"running", [packed(0, 1), packed(1, 2)], (2, 0)
    )
    assert delivered(ledger) == [(1,), (2,)]
    assert not ledger.jobs_to_resync


def test_nothing_is_delivered_after_the_end(ledger: DeliveryLedger, live: LiveJob) -> None:
    ledger.receive("j", 0, packed(0, 1, is_end=True), (1, 0))
    ledger.receive("j", 1, packed(1, 2), (9, 0))
    ledger.fail(live, ErrorCode.INTERNAL_ERROR, "too late")
    ledger.request_resync("j")
    assert delivered(ledger) == [(1,)]
    assert not ledger.jobs_to_resync


def test_frames_after_the_end_in_a_log_tail_are_not_delivered(ledger: DeliveryLedger, live: LiveJob) -> None:
    tail = [packed(0, 1, is_end=True), packed(1, 2)]
    ledger.apply_resync(live, ledger.controller_id, live.epoch, b"done", tail, (1, 0))
    assert delivered(ledger) == [(1,)]
    assert not ledger.jobs_to_resync


def test_dropping_a_job_discards_its_ready_events(ledger: DeliveryLedger) -> None:
    ledger.receive("j", 0, packed(0, 1), (1, 0))
    ledger.drop("j")
    assert not ledger.take_ready()


def test_a_new_reader_gets_only_delivered_events(ledger: DeliveryLedger, live: LiveJob) -> None:
    ledger.receive("j", 0, packed(0, 1), (1, 0))
    ledger.take_ready()
    ledger.receive("j", 1, packed(1, 2), (2, 0))
    log = ledger.reattach(live, "another nonce", epoch=1)
    assert [event.token_ids for event in log] == [(1,)]


def test_a_resync_under_an_old_controller_id_changes_nothing(ledger: DeliveryLedger, live: LiveJob) -> None:
    former_id = ledger.controller_id
    ledger.change_identity()
    assert not ledger.apply_resync(live, former_id, live.epoch, b"running", [packed(0, 1)], (1, 0))
    ledger.finish_resync(live, former_id)
    assert not ledger.has_ready
    assert ledger.jobs_to_resync == ("j",)
