"""Fair sharing of a limited resource, such as decoder processes or threads, between tenants (API keys).

The next free slot is given to the waiting tenant with the lowest virtual time, which is the total time for
which the tenant has held slots, divided by its weight (start-time fair queueing; Goyal, Vin and Cheng, 1996).
Its share therefore depends neither on the number of its requests nor on their duration. Requests of one
tenant are served in the order in which they arrive.

- A tenant that was idle resumes at the current virtual time, so that it does not accumulate credit.
- With a reserve, a tenant that holds ``n`` slots gets another one only if more than ``n`` are free (dynamic
  thresholds; Choudhury and Hahne, 1998), and tenants that hold fewer slots come first. A single tenant holds
  half of the slots. Another tenant soon gets a slot unless there are at least as many busy tenants as slots.
- The number of waiting requests per tenant is limited, and so is the time that each of them waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from llava_server.errors import ApiError
from llava_server.metrics import Metrics

__all__ = ["FairSlots", "Slot", "SlotLimits"]

_RETRY_AFTER_S = 2.0
_MIN_REST_S, _MAX_REST_S = 0.004, 0.25


@dataclass(frozen=True, kw_only=True)
class SlotLimits:
    """The limits of a FairSlots object. None means that there is no limit.

    ``max_waiting`` is the maximum number of waiting requests per tenant, and ``timeout_s`` the maximum time
    that a request waits. Without ``has_reserve``, a tenant can hold all slots.
    """

    num_slots: int
    has_reserve: bool = True
    max_waiting: int | None = None
    timeout_s: float | None = None


@dataclass
class _Tenant:
    """``served_s`` is the virtual time in seconds, without the slots in ``held``."""

    weight: float
    served_s: float
    held: set[Slot] = field(default_factory=set)
    waiting: deque[_Request] = field(default_factory=deque)

    def virtual_s(self, now: float) -> float:
        """Return the virtual time, including the time for which the tenant has held its current slots."""
        return self.served_s + sum(now - slot.began_at for slot in self.held) / self.weight


@dataclass(eq=False)
class _Request:
    tenant: str
    arrived_at: float
    slot: asyncio.Future[Slot]


class Slot:
    """A slot that a tenant holds until it calls ``release``. Further calls of ``release`` have no effect."""

    def __init__(
        self, release: Callable[[Slot], None], tenant: str, began_at: float, clock: Callable[[], float]
    ) -> None:
        self._release = release
        self._clock = clock
        self.tenant = tenant
        self.began_at = began_at

    def release(self) -> None:
        self._release(self)

    def rest(self) -> None:
        """Release the slot after a pause, which is as long as the slot was held if this was a long time.

        During the pause, the event loop and its other callbacks can use the interpreter.
        """
        held_s = self._clock() - self.began_at
        if held_s < _MIN_REST_S:
            self.release()
        else:
            asyncio.get_running_loop().call_later(min(held_s, _MAX_REST_S), self.release)


class FairSlots:
    """The slots of one stage of request processing. It must be used in one event loop.

    ``stage`` identifies the stage in the metrics, and ``work`` describes it in errors (for example, "image
    decoding"). ``weight_of`` returns the weight of a tenant.
    """

    def __init__(
        self,
        stage: str,
        work: str,
        limits: SlotLimits,
        metrics: Metrics,
        *,
        weight_of: Callable[[str], float] = lambda _tenant: 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_slots = limits.num_slots
        self._stage = stage
        self._work = work
        self._limits = limits
        self._metrics = metrics
        self._weight_of = weight_of
        self._clock = clock
        self._num_free = limits.num_slots
        self._tenants: dict[str, _Tenant] = {}  # that hold a slot, wait, or are ahead of _virtual_s
        self._virtual_s = 0.0  # virtual time of the tenant that was served last

    async def acquire(self, tenant: str) -> Slot:
        """Wait for a slot. The caller must release it.

        Raises ApiError: 429 if too many requests of this tenant are waiting, 503 if the wait takes too long.
        """
        request = self._enqueue(tenant)
        timeout_s = self._limits.timeout_s
        loop = asyncio.get_running_loop()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._expire, request)
        try:
            return await request.slot
        except asyncio.CancelledError:
            self._abandon(request)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    @asynccontextmanager
    async def hold(self, tenant: str) -> AsyncIterator[None]:
        """Hold a slot during the ``with`` block. Raises the same errors as ``acquire``."""
        slot = await self.acquire(tenant)
        try:
            yield
        finally:
            slot.release()

    def _enqueue(self, name: str) -> _Request:
        tenant = self._tenants.setdefault(name, _Tenant(self._weight_of(name), self._virtual_s))
        if not tenant.held and not tenant.waiting:
            tenant.served_s = max(tenant.served_s, self._virtual_s)
        max_waiting = self._limits.max_waiting
        if max_waiting is not None and len(tenant.waiting) >= max_waiting:
            self._metrics.slot_refused(self._stage, "tenant_limit")
            raise ApiError(
                "rate_limit_exceeded",
                f"This API key has reached its limit of {max_waiting} requests that wait for {self._work}. "
                "Send fewer concurrent requests, or retry later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        request = _Request(name, self._clock(), asyncio.get_running_loop().create_future())
        tenant.waiting.append(request)
        self._dispatch()
        return request

    def _dispatch(self) -> None:
        """Give the free slots to waiting tenants."""
        now = self._clock()
        while self._num_free and (found := self._next(now)) is not None:
            tenant, virtual_s = found
            request = tenant.waiting.popleft()
            if request.slot.cancelled():
                continue
            self._virtual_s = max(self._virtual_s, virtual_s)
            slot = Slot(self._release, request.tenant, now, self._clock)
            tenant.held.add(slot)
            self._num_free -= 1
            self._metrics.slot_acquired(self._stage, now - request.arrived_at)
            request.slot.set_result(slot)

    def _next(self, now: float) -> tuple[_Tenant, float] | None:
        """Return the tenant to serve next and its virtual time, or None if no tenant can be served."""
        has_reserve = self._limits.has_reserve
        candidates = [
            (len(tenant.held) * has_reserve, tenant.virtual_s(now), number, tenant)
            for number, tenant in enumerate(self._tenants.values())
            if tenant.waiting and (len(tenant.held) < self._num_free or not has_reserve)
        ]
        if not candidates:
            return None
        _, virtual_s, _, tenant = min(candidates)
        return tenant, virtual_s

    def _release(self, slot: Slot) -> None:
        tenant = self._tenants.get(slot.tenant)
        if tenant is None or slot not in tenant.held:
            return
        tenant.held.remove(slot)
        tenant.served_s += (self._clock() - slot.began_at) / tenant.weight
        self._num_free += 1
        self._dispatch()
        self._drop_idle()

    def _drop_idle(self) -> None:
        """Drop idle tenants that would resume at the current virtual time, or all if all are idle."""
        idle = [name for name, tenant in self._tenants.items() if not tenant.held and not tenant.waiting]
        is_idle = len(idle) == len(self._tenants)
        for name in idle:
            if is_idle or self._tenants[name].served_s <= self._virtual_s:
                del self._tenants[name]

    def _expire(self, request: _Request) -> None:
        if request.slot.done():
            return
        self._remove(request)
        self._metrics.slot_refused(self._stage, "timeout")
        request.slot.set_exception(
            ApiError(
                "overloaded",
                f"The request waited for {self._work} for {self._limits.timeout_s:g} seconds, which is the "
                "limit. The server is overloaded, or this API key has too many concurrent requests. Retry "
                "later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        )

    def _abandon(self, request: _Request) -> None:
        """Remove a request whose caller was cancelled, or release the slot that it has just received."""
        if request.slot.cancelled():
            self._remove(request)
        elif request.slot.exception() is None:
            request.slot.result().release()

    def _remove(self, request: _Request) -> None:
        tenant = self._tenants.get(request.tenant)
        if tenant is not None and request in tenant.waiting:  # else _dispatch has removed it
            tenant.waiting.remove(request)
            self._drop_idle()
