from __future__ import annotations

import msgspec
import pytest
from llava_wire.controller_side.delivery_ledger import DeliveryLedger, LiveJob
from llava_wire.messages.event import ErrorCode, Event

from tests.wire.lab import STOP, make_job


def packed(offset: int, *tokens: int, text: str = "", is_end: bool = False) -> bytes:
    return msgspec.msgpack.encode(Event(offset, tokens, text, STOP if is_end else None))


@pytest.fixture
def ledger() -> DeliveryLedger:
    ledger = DeliveryLedger()
    ledger.live["j"] = LiveJob(make_job(job_id="j"), {}, ttl_s=60)
    return ledger


def tokens(ledger: DeliveryLedger) -> list[tuple[int, ...]]:
    return [event.token_ids for _, event in ledger.ready]


def test_frames_in_order_are_delivered(ledger: DeliveryLedger) -> None:
    ledger.hear("j", 0, packed(0, 1), (1, 0))
    ledger.hear("j", 1, packed(1, 2, 3), (2, 0))
    assert tokens(ledger) == [(1,), (2, 3)]
    assert not ledger.suspects


def test_a_double_is_dropped_also_without_tokens(ledger: DeliveryLedger) -> None:
    for _ in range(2):
        ledger.hear("j", 0, packed(0, text="a"), (1, 0))
        ledger.hear("j", 1, packed(0, 1), (2, 0))
    assert tokens(ledger) == [(), (1,)]
    assert not ledger.suspects


@pytest.mark.parametrize(
    ("index", "payload"),
    [(2, packed(1, 9)), (0, packed(0, 9)), (1, packed(5, 9))],
    ids=["a gap", "another lineage", "an offset that does not fit"],
)
def test_what_does_not_fit_is_not_delivered_and_makes_a_suspect(
    ledger: DeliveryLedger, index: int, payload: bytes
) -> None:
    ledger.hear("j", 0, packed(0, 1), (1, 0))
    ledger.hear("j", index, payload, (2, 0))
    ledger.hear("j", 1, packed(1, 2), (3, 0))  # a suspect waits for its resync
    assert tokens(ledger) == [(1,)]
    assert list(ledger.suspects) == ["j"]


def test_entries_from_before_a_resync_are_void(ledger: DeliveryLedger) -> None:
    ledger.live["j"].settled_at = (5, 1)
    ledger.hear("j", 0, packed(0, 9), (5, 1))
    assert not ledger.ready
    ledger.hear("j", 0, packed(0, 1), (5, 2))
    assert tokens(ledger) == [(1,)]


def test_nothing_comes_after_the_end(ledger: DeliveryLedger) -> None:
    ledger.deliver("j", 0, packed(0, 1, is_end=True))
    ledger.deliver("j", 1, packed(1, 2))
    ledger.hear("j", 1, packed(1, 2), (9, 0))
    ledger.fail("j", ErrorCode.INTERNAL_ERROR, "too late")
    ledger.suspect("j")
    assert tokens(ledger) == [(1,)]
    assert not ledger.suspects


def test_a_silenced_job_loses_even_what_was_ready(ledger: DeliveryLedger) -> None:
    ledger.deliver("j", 0, packed(0, 1))
    ledger.silence("j")
    assert not ledger.take_ready()


def test_only_events_that_were_given_out_are_delivered_ones(ledger: DeliveryLedger) -> None:
    ledger.deliver("j", 0, packed(0, 1))
    ledger.take_ready()
    ledger.deliver("j", 1, packed(1, 2))
    assert [event.token_ids for event in ledger.delivered("j")] == [(1,)]
