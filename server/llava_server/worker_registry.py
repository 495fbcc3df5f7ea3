"""Which models are served, by whom, and how they want their pictures: a copy of the heartbeats, a second old.

Readers never wait for Redis: ``GET /v1/models`` answers from here. A model seen once in this process's life
stays known, so that "no worker at the moment" (503, come again) is told from "no such model" (404).
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass

from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.heartbeat import Heartbeat, ImageSpec

from llava_server.errors import ApiError
from llava_server.request_metrics import Metrics

__all__ = ["ServedModel", "WorkerRegistry"]

logger = logging.getLogger(__name__)

_STALE_S = 5.0  # without a look at the queue for so long, it counts as unreachable
_EAGER_S = 0.25  # a request for an unknown model may look again so often
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class ServedModel:
    """A model as its newest worker announces it."""

    name: str
    image_spec: ImageSpec
    context_length: int
    precision: str
    first_seen: int  # Unix seconds

    @property
    def fingerprint(self) -> str:
        """Changes when the same seed may give another answer."""
        text = f"{self.name}/{self.precision}/{self.context_length}/{self.image_spec}"
        return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class WorkerRegistry:
    """Refreshed by one task; read by everyone."""

    def __init__(self, producer: JobProducer, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self._models: dict[str, ServedModel] = {}
        self._num_workers: dict[str, int] = {}
        self._workers: list[Heartbeat] = []
        self._looked_at: float | None = None  # monotonic
        self._trouble: str | None = "the queue has not been looked at yet"

    @property
    def models(self) -> list[ServedModel]:
        """Every model ever seen here, by name."""
        return [self._models[name] for name in sorted(self._models)]

    @property
    def workers(self) -> list[Heartbeat]:
        """What the live workers that have a model said last; nothing while the queue cannot be used."""
        return [] if self.trouble else self._workers

    @property
    def trouble(self) -> str | None:
        """Why the queue cannot be used, None if it can."""
        if self._trouble is None and self._looked_at is not None:
            age_s = time.monotonic() - self._looked_at
            return f"the queue has not answered for {age_s:.0f} s" if age_s > _STALE_S else None
        return self._trouble

    def num_workers(self, model: str) -> int:
        """Live workers of the model that take new jobs."""
        return self._num_workers.get(model, 0)

    async def find(self, name: str) -> ServedModel:
        """The model, if somebody can answer for it now. Raises ApiError: 404 for unknown, 503 for idle."""
        if not self.num_workers(name) and self._age_s() > _EAGER_S:
            await self.refresh()  # the worker may have started within the last second
        model = self._models.get(name)
        if model is None and self._trouble:
            raise ApiError("queue_unavailable", self._trouble, retry_after_s=_RETRY_AFTER_S)
        if model is None:
            raise self._unknown(name)
        if not self.num_workers(name):
            raise ApiError(
                "no_worker",
                f"no worker serves {name!r} at the moment: come again shortly, or start one with "
                "'llava-serve worker'",
                param="model",
                retry_after_s=_RETRY_AFTER_S,
            )
        return model

    def known(self, name: str) -> ServedModel:
        """The model, live or not. Raises ApiError (404)."""
        if name not in self._models:
            raise self._unknown(name)
        return self._models[name]

    def fingerprint(self, name: str) -> str | None:
        """That of a model, if it has been seen here."""
        return self._models[name].fingerprint if name in self._models else None

    async def refresh(self) -> None:
        """One look at the queue. An unreachable queue is remembered, not raised."""
        try:
            heartbeats = await self._producer.heartbeats()
            stats = await self._producer.stats(heartbeats)
        except QueueUnavailable as error:
            self._note_trouble(f"the queue cannot be reached: {error}")
            return
        self._note_trouble(None)
        self._looked_at = time.monotonic()
        heartbeats = [beat for beat in heartbeats if beat.model]
        for heartbeat in sorted(heartbeats, key=lambda beat: beat.started_at):
            self._learn(heartbeat)
        self._workers = heartbeats
        self._num_workers = dict.fromkeys(self._models, 0)
        for heartbeat in heartbeats:
            self._num_workers[heartbeat.model] += not heartbeat.is_draining
        self._metrics.set_queue(
            num_running=stats.num_running,
            num_waiting=dict.fromkeys(self._models, 0) | dict(stats.num_waiting),
            num_workers=self._num_workers,
        )

    def _learn(self, heartbeat: Heartbeat) -> None:
        known = self._models.get(heartbeat.model)
        first_seen = known.first_seen if known else int(heartbeat.started_at or time.time())
        model = ServedModel(
            heartbeat.model, heartbeat.image_spec, heartbeat.context_length, heartbeat.precision, first_seen
        )
        if known is None:
            logger.info("model %s is served on %s in %s", model.name, heartbeat.device, model.precision)
        self._models[model.name] = model

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble and self._trouble is None:
            logger.warning("%s", trouble)
        if trouble is None and self._trouble and self._looked_at is not None:
            logger.info("the queue answers again")
        if trouble:
            self._metrics.queue_up.set(0)
        self._trouble = trouble

    def _age_s(self) -> float:
        return float("inf") if self._looked_at is None else time.monotonic() - self._looked_at

    def _unknown(self, name: str) -> ApiError:
        served = ", ".join(sorted(self._models)) or "none yet"
        return ApiError(
            "model_not_found", f"model {name[:64]!a} is not served here; served: {served}", param="model"
        )
