"""The keys in Redis, all under one hash tag so that a cluster keeps them in one slot.

===================== ====== ===================================== =========================================
key                   type   what; written by                      life
===================== ====== ===================================== =========================================
wait:{model}          ZSET   job -> fair score; submit, requeue    the longest of its jobs' lives
wait-high, wait-low   ZSET   the same for other priorities         as wait
suspects:{model}      ZSET   the same for those in quarantine      as wait
since:{model}         ZSET   job -> when it began to wait          as wait
backlog:{model}       STRING cost of all waiting jobs              as wait
ward:{model}          STRING worker to run empty for quarantine    a lease
served:{model}:{n}    STRING cost served in the n-th ten seconds   70 s
fair:{model}          ZSET   queue, tenant -> next start; submit   1 h after use
clock:{model}         STRING virtual time of the fair order; pull  1 h after use
wake:{model}          LIST   one token when there is work          1 min
job:{job}             HASH   state, payload, owner ...; all        deadline + 5 min; 5 min after the end
log:{job}             LIST   packed events, the checkpoint; emit   as its job
tenant:{tenant}       HASH   its live jobs -> cost                 the longest of its jobs' lives
live:{controller}     SET    the jobs that it streams              the longest of its jobs' lives
inflight:{worker}     HASH   job -> assignment, route, log length  the longest of its jobs' lives
heartbeat:{worker}    STRING packed Heartbeat; heartbeat           its lease
order:{worker}        HASH   its command; command                  1 min after its heartbeat
out:{controller}      STREAM frames for it; emit, reap             10 min after use, about 10,000 entries
beats:{controller}    STRING number of its last beat; reap         10 min after use
blob:{digest}         STRING image tiles; submit, supply_images    the longest of its jobs' lives
users:{digest}        SET    live jobs that use the image          the longest of its jobs' lives
rate:{tenant}         HASH   requests, tokens left; rate_limit     until it is full again
file:{file}           HASH   tenant, size, packed StoredFile       7 days, as set; 10 min during upload
bytes:{file}          STRING its contents; files                   as its file
files:{tenant}        ZSET   "file size" -> end of its life        the longest of its files' lives
batch:{batch}         HASH   state, driver, counts; batches        window + 7 days
results:{batch}       HASH   line -> its result                    as its batch; gone at the end
batches:{tenant}      ZSET   batch -> when it came                 the longest of its batches' lives
batching:{tenant}     SET    its unfinished batches                the longest of its batches' lives
reaped                STRING a controller has reaped; reap         a lease
workers               ZSET   worker -> end of its lease            permanent; the dead are reaped
progress              ZSET   worker -> time to show progress by    permanent; the dead are reaped
controllers           ZSET   controller -> last beat               permanent; the dead are reaped
pixels                ZSET   "digest size" -> end of its life      permanent; the expired are dropped
pixel_bytes           STRING sum of those sizes                    permanent
files                 ZSET   "file size" -> end of its life        permanent; the expired are dropped
file_bytes            STRING sum of those sizes                    permanent
batches               ZSET   unfinished batch -> end of its lease  permanent; the ended are dropped
keys                  HASH   digest -> packed ApiKey; api_key_add  permanent
dlq                   STREAM dead letters; reap                    permanent, about 1,000 entries
===================== ====== ===================================== =========================================

The scripts build these names themselves (``scripts/shared/base.lua``); Python needs only those below.
"""

from __future__ import annotations

__all__ = ["PERMANENT", "PREFIX", "blob_key", "out_key", "wake_key"]

PREFIX = "{lv}:"
_NAMES = (
    "workers",
    "progress",
    "controllers",
    "pixels",
    "pixel_bytes",
    "files",
    "file_bytes",
    "batches",
    "keys",
    "dlq",
)
# Keys without a time to live; every other key gets one in the script that creates it.
PERMANENT = tuple(PREFIX + name for name in _NAMES)


def blob_key(digest: str) -> str:
    return f"{PREFIX}blob:{digest}"


def out_key(controller_id: str) -> str:
    return f"{PREFIX}out:{controller_id}"


def wake_key(model: str) -> str:
    return f"{PREFIX}wake:{model}"
