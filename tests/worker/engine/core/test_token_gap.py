"""The limit of the duration of steps that compute prompts while other sequences are decoding."""

from __future__ import annotations

import math
import random

import pytest
from llava_worker.engine import ImageSpan
from llava_worker.engine.core.token_gap import TokenGap

from tests.worker.engine.core.test_scheduler import Bench

BUDGET = 512


class Device(Bench):
    """A scheduler and a simulated device.

    A step takes ``decode_s``, and in addition ``token_s`` per prompt token and ``image_s`` per new image.
    """

    def __init__(
        self, max_token_gap_s: float, *, decode_s: float, token_s: float, image_s: float = 0.0
    ) -> None:
        encoder_cost = image_s / token_s / 100  # the images of these tests have 100 tokens
        super().__init__(
            num_blocks=4000,
            max_batch_tokens=BUDGET,
            encoder_cost=encoder_cost,
            max_token_gap_s=max_token_gap_s,
        )
        self.decode_s, self.token_s, self.image_s = decode_s, token_s, image_s
        self.seconds: list[float] = []

    def step(self) -> dict[str, tuple[int, int]]:
        num_images = len(self.encoded)
        chunks = super().step()
        num_tokens = sum(end - start for start, end in chunks.values() if end - start > 1)
        for sequence in self.scheduler:
            if sequence.seq_id in chunks:
                within = sequence.images_within(*chunks[sequence.seq_id])
                self.encoded.update((sequence.cache_scope, image.content) for image in within)
        num_new = len(self.encoded) - num_images
        seconds = self.decode_s + num_tokens * self.token_s + num_new * self.image_s
        self.seconds.append(seconds)
        self.scheduler.record_duration(seconds, is_ahead=False)
        return chunks


def decode(device: Device, num_steps: int = 10) -> None:
    """Start a stream and let it decode."""
    device.add("stream", 2)
    for _ in range(num_steps):
        device.step()


def learn_speed(device: Device) -> None:
    """Measure steps with and without prompts, then remove all sequences."""
    decode(device)
    device.add("first", 600)
    while device.step().get("first", (0, 0))[1] < 600:
        pass
    for sequence in list(device.scheduler):
        device.scheduler.remove(sequence)


@pytest.mark.parametrize("seed", range(5))
def test_steps_with_prompts_are_as_long_as_the_limit_once_the_speed_is_known(seed: int) -> None:
    random_ = random.Random(seed)
    device = Device(0.4, decode_s=random_.uniform(0.01, 0.15), token_s=random_.uniform(0.0005, 0.005))
    decode(device)
    device.add("first", 1500)
    while device.step()["first"][1] < 1500:
        pass
    device.seconds.clear()
    device.add("second", 1500)
    while device.step()["second"][1] < 1500:
        pass
    *full, _ = device.seconds
    full_budget_s = device.decode_s + BUDGET * device.token_s
    assert max(full) <= 0.4 * 1.05
    assert min(full) >= min(0.4, full_budget_s) * 0.8


def test_while_no_stream_is_running_prompts_use_the_whole_budget() -> None:
    device = Device(0.01, decode_s=0.01, token_s=0.0005)
    learn_speed(device)
    device.add("long", 1500)
    assert device.step() == {"long": (0, BUDGET)}


def test_a_new_request_does_not_wait_for_long_prompts_of_lower_priority() -> None:
    device = Device(0.4, decode_s=0.01, token_s=0.0005)
    learn_speed(device)
    for number in range(4):
        device.add(f"long {number}", 1500)
    device.step()
    device.add("short", 50, priority=1)
    device.seconds.clear()
    chunks = device.step()
    assert chunks["short"] == (0, 50)
    assert device.seconds[0] <= 2 * device.decode_s + 50 * device.token_s
    assert sum(end - start for start, end in chunks.values()) > 50  # the long prompts progress, too

    for _ in range(10):
        device.seconds.clear()
        device.step()
        assert device.seconds[0] <= 3 * device.decode_s
    for _ in range(50):
        device.step()
    for sequence in list(device.scheduler):
        device.scheduler.remove(sequence)
    device.add("next", 1500)
    device.seconds.clear()
    device.step()
    assert device.seconds[0] == device.decode_s + BUDGET * device.token_s


def test_a_short_prompt_of_equal_priority_does_not_shorten_the_step() -> None:
    device = Device(0.4, decode_s=0.01, token_s=0.0005)
    learn_speed(device)
    device.add("short", 50)
    device.add("long", 1500)
    assert device.step() == {"short": (0, 50), "long": (0, BUDGET - 50)}


def test_without_a_limit_prompts_use_the_whole_budget() -> None:
    device = Device(math.inf, decode_s=1.0, token_s=1.0)
    decode(device)
    device.add("prompt", 1500)
    assert [device.step()["prompt"] for _ in range(2)] == [(0, 511), (511, 1022)]


def test_prompts_get_as_much_time_as_streams_if_the_model_is_slower_than_the_limit() -> None:
    device = Device(0.1, decode_s=1.0, token_s=0.01)
    decode(device)
    device.add("prompt", 1500)
    chunks = [device.step()["prompt"] for _ in range(4)]
    assert [end - start for start, end in chunks[1:]] == [96, 96, 96]


def test_a_prompt_progresses_however_slow_the_model_is() -> None:
    device = Device(0.1, decode_s=0.01, token_s=100.0)
    decode(device)
    device.add("prompt", 600)
    chunks = [device.step()["prompt"] for _ in range(6)]
    assert [end - start for start, end in chunks[1:]] == [16] * 5


def test_new_images_count_with_their_duration() -> None:
    device = Device(0.4, decode_s=0.05, token_s=0.001, image_s=0.1)
    decode(device)
    images = [ImageSpan(100 * number, 100, str(number)) for number in range(12)]
    device.add("prompt", 1200, *images)
    while device.step()["prompt"][1] < 1200:
        pass
    prefill = device.seconds[11:]  # the first step with a prompt is measured
    assert max(prefill) <= 0.4 * 1.1
    assert len(prefill) <= 8  # an image takes 0.2 s, so almost two fit in each step


def test_an_image_is_encoded_although_every_step_has_prompts_of_higher_priority() -> None:
    device = Device(0.4, decode_s=0.01, token_s=0.001, image_s=1.0)
    learn_speed(device)
    device.add("image", 100, ImageSpan(0, 100, "digest"))
    num_steps, chunks = 0, dict[str, tuple[int, int]]()
    while "image" not in chunks and num_steps < 20:
        text = device.add(f"text {num_steps}", 5, priority=1)
        chunks = device.step()
        device.scheduler.remove(text)
        num_steps += 1
    assert 1 < num_steps <= 10


def test_an_interruption_of_the_process_hardly_changes_the_limit() -> None:
    gap = TokenGap(0.4)
    for _ in range(10):
        gap.observe(prompt_cost=0, seconds=0.1)
        gap.observe(prompt_cost=100, seconds=0.2)
    assert gap.max_prompt_cost(BUDGET, has_streams=True) == 288
    gap.observe(prompt_cost=100, seconds=60.0)
    assert gap.max_prompt_cost(BUDGET, has_streams=True) >= 144
