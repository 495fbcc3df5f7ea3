"""An OutputQueue passes single events to its receiver, and keeps the order of all events."""

from __future__ import annotations

from llava_server.generation.output_queue import OutputQueue
from llava_wire.messages.event import Event, Final, FinishReason

EVENTS = [Event(number, (number,), "x") for number in range(4)]


async def _close(queue: OutputQueue) -> None:
    del queue


def new_queue(received: list[Event], *, is_ready: bool = True) -> OutputQueue:
    """Return a queue with a receiver that processes events only if it is ready."""
    queue = OutputQueue("job", "tenant", timeout_s=1, queue_timeout_s=1, is_resumable=False, close=_close)

    def receive(event: Event) -> bool:
        if is_ready:
            received.append(event)
        return is_ready

    queue.receiver = receive
    return queue


def no_events() -> list[Event]:
    return []


def rest(queue: OutputQueue) -> list[Event]:
    events = []
    while (event := queue.get_nowait()) is not None:
        events.append(event)
    return events


def test_a_single_event_is_processed_by_the_receiver() -> None:
    queue = new_queue(received := no_events())
    queue.put_all(EVENTS[:1])
    queue.put(EVENTS[1])
    assert (received, rest(queue)) == (EVENTS[:2], [])


def test_events_that_arrive_together_are_queued() -> None:
    queue = new_queue(received := no_events())
    queue.put_all(EVENTS[:3])
    assert (received, rest(queue)) == ([], EVENTS[:3])


def test_an_event_does_not_overtake_queued_events() -> None:
    queue = new_queue(received := no_events())
    queue.put_all(EVENTS[:2])
    queue.put_all(EVENTS[2:3])
    assert (received, rest(queue)) == ([], EVENTS[:3])
    queue.put(EVENTS[3])
    assert received == EVENTS[3:]


def test_an_event_is_queued_if_the_receiver_is_not_ready() -> None:
    queue = new_queue(received := no_events(), is_ready=False)
    queue.put(EVENTS[0])
    assert (received, rest(queue)) == ([], EVENTS[:1])


def test_the_last_event_is_queued() -> None:
    last = Event(0, (1,), "x", Final(reason=FinishReason.STOP))
    queue = new_queue(received := no_events())
    queue.put(last)
    assert (received, rest(queue), queue.is_finished) == ([], [last], True)
