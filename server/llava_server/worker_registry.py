"""The registry of live workers and served models: a copy of the workers' heartbeats, refreshed every second.

Readers such as ``GET /v1/models`` use the copy, so they do not wait for Redis. Only if the copy contains no
live worker do health checks wait briefly for a new copy, so that a started server is ready as soon as its
first worker. A model stays registered after its last worker has exited, so that requests for it fail with 503
(retry) instead of 404 (unknown model), or wait for a worker if the model's workers are started on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from dataclasses import dataclass

from llava_wire.controller_side.query_results import QueueStats
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.messages.heartbeat import EngineInfo, Heartbeat, ImageSpec

from llava_server.errors import ApiError, queue_unavailable
from llava_server.metrics import Metrics, ModelLoad
from llava_server.on_demand_models import OnDemandModels
from llava_server.queue_health import QueueHealth
from llava_server.shared_refresh import SharedRefresh

__all__ = ["ServedModel", "WorkerRegistry"]

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0
_FINGERPRINT_DIGITS = 10
_MAX_FIND_S = 0.5  # half of the default timeout of a Kubernetes probe


@dataclass(frozen=True)
class ServedModel:
    """A served model, as described by its most recently started worker."""

    name: str
    image_spec: ImageSpec
    context_length: int
    precision: str
    digest: str  # digest of the weights and of everything else that shapes the output; empty if unknown
    first_seen: int  # Unix seconds
    engine: EngineInfo | None = None  # None if the worker does not report it
    max_token_bytes: int = 0  # maximum bytes of a text per token; 0 if it is unlimited or unknown

    def fingerprint(self, model_digest: str = "") -> str:
        """Return the ``system_fingerprint`` of a response.

        It changes whenever the same seed might no longer produce the same output. ``model_digest`` is the
        digest in the events of the response. It differs from ``digest`` while a model is being replaced. It
        is empty if the worker did not send a digest.
        """
        if digest := model_digest or self.digest:
            return f"fp_{digest[:_FINGERPRINT_DIGITS]}"
        text = f"{self.name}/{self.precision}/{self.context_length}/{self.image_spec}"
        return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_DIGITS]}"


class WorkerRegistry:
    """The live workers and served models. Only ``refresh`` changes them; every request reads them."""

    def __init__(
        self, producer: ShardedProducer, metrics: Metrics, health: QueueHealth, on_demand: OnDemandModels
    ) -> None:
        self._producer = producer
        self._on_demand = on_demand
        self._metrics = metrics
        self._health = health
        self._models: dict[str, ServedModel] = {}  # keyed by name
        self._num_workers: dict[str, int] = {}  # keyed by model name
        self._heartbeats: list[Heartbeat] = []
        self._refreshing = SharedRefresh(self._refresh)

    @property
    def models(self) -> list[ServedModel]:
        """All models that have been served since this process started, sorted by name."""
        return [self._models[name] for name in sorted(self._models)]

    @property
    def heartbeats(self) -> list[Heartbeat]:
        """The latest heartbeats of live workers with a model. Empty while they cannot be read."""
        return self._heartbeats if self._health.is_available("read") else []

    def num_workers(self, model: str) -> int:
        """Return the number of live workers of the model that accept jobs."""
        return self._num_workers.get(model, 0)

    @property
    def accepts_requests(self) -> bool:
        """Whether this server knows any model: one that was served, or one that is started on demand."""
        return bool(self._models or self._on_demand.names)

    @property
    def has_workers(self) -> bool:
        """Whether any live worker accepts jobs."""
        return any(self._num_workers.values())

    async def find(self, name: str) -> ServedModel:
        """Return a model. Wait for its first worker if its workers are started on demand.

        Raises ApiError: 404 if the model is unknown, 503 if no live worker serves it and none is started on
        demand, 408 if none has started within the queue timeout. While the queue is unavailable and shortly
        afterwards, and until this server has found its first worker, unknown models are a 503 too, because
        workers could not announce them.
        """
        if not self.num_workers(name):
            await self._refreshing.run_after_now()  # a worker may have just loaded the model
        if name in self._on_demand.names:
            await self._on_demand.wait(name, lambda: name in self._models)
            return self._models[name]
        if self._models or not self._health.is_settled:
            self.get(name)
        # Otherwise, this server has not found any worker yet, so it cannot know which models exist.
        if not self.num_workers(name):
            raise _no_worker(name)
        return self._models[name]

    def get(self, name: str) -> ServedModel:
        """Return a model, even if it has no live worker. Raises ApiError (404, 503)."""
        if name not in self._models and name in self._on_demand.names:
            raise _no_worker(name)
        if name not in self._models:
            raise self._not_found(name) if self._health.is_settled else queue_unavailable(_RETRY_AFTER_S)
        return self._models[name]

    def fingerprint(self, name: str, model_digest: str = "") -> str | None:
        """Return the fingerprint of a response, or None if the model is unknown."""
        return self._models[name].fingerprint(model_digest) if name in self._models else None

    async def find_worker(self) -> None:
        """Refresh the copy if it contains no live worker, because one may have just registered.

        The wait is limited, because health checks must respond even if Redis does not.
        """
        if not self.has_workers:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._refreshing.run_after_now(), _MAX_FIND_S)

    async def refresh(self) -> None:
        """Read the heartbeats. If the queue is unavailable, report this to ``QueueHealth``."""
        await self._refreshing.run()

    async def _refresh(self) -> None:
        await self._read_heartbeats()
        await self._on_demand.wake()

    async def _read_heartbeats(self) -> None:
        try:
            heartbeats = await self._producer.heartbeats()
            stats = await self._producer.stats(heartbeats, models=self._on_demand.names)
        except QueueUnavailable as error:
            self._health.report("read", error)
            return
        self._health.report("read", None)
        heartbeats = [heartbeat for heartbeat in heartbeats if heartbeat.model]
        for heartbeat in sorted(heartbeats, key=lambda heartbeat: heartbeat.started_at):
            self._add_model(heartbeat)
        self._heartbeats = heartbeats
        self._num_workers = dict.fromkeys(self._models, 0)
        for heartbeat in heartbeats:
            self._num_workers[heartbeat.model] += not heartbeat.is_draining
        self._export(stats)

    def _export(self, stats: QueueStats) -> None:
        """Update the metrics of all models, including those that are started on demand and not served.

        The cost of a request that waits for the first worker of its model is unknown. It counts as one token.
        """
        num_held = self._on_demand.num_waiting
        for name in {*self._models, *self._on_demand.names, *stats.num_waiting}:
            held = num_held.get(name, 0)
            load = ModelLoad(
                num_running=stats.num_running.get(name, 0),
                num_waiting=stats.num_waiting.get(name, 0) + held,
                num_tokens_waiting=stats.cost_waiting.get(name, 0.0) + held,
                num_workers=self.num_workers(name),
                is_on_demand=name in self._on_demand.names,
            )
            self._metrics.set_load(name, load)

    def _add_model(self, heartbeat: Heartbeat) -> None:
        known = self._models.get(heartbeat.model)
        first_seen = known.first_seen if known else int(heartbeat.started_at or time.time())
        model = ServedModel(
            heartbeat.model,
            heartbeat.image_spec,
            heartbeat.context_length,
            heartbeat.precision,
            heartbeat.model_digest,
            first_seen,
            heartbeat.engine,
            heartbeat.max_token_bytes,
        )
        if known is None:
            logger.info(
                "model %s is served on %s with precision %s", model.name, heartbeat.device, model.precision
            )
        self._models[model.name] = model

    def _not_found(self, name: str) -> ApiError:
        model_name, served_models = name[:64], ", ".join(sorted(self._models)) or "none"
        return ApiError(
            "model_not_found",
            f"The model {model_name!a} does not exist. Available models: {served_models}.",
            param="model",
        )


def _no_worker(name: str) -> ApiError:
    return ApiError(
        "no_worker",
        f"No worker currently serves the model {name!r}. Retry later, or start a worker with "
        "'llava-serve worker'.",
        param="model",
        retry_after_s=_RETRY_AFTER_S,
    )
