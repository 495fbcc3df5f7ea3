"""Redis keys. All keys of a shard contain the same hash tag, so that a Redis cluster stores them in one slot.

A shard is a complete queue (see ``shards``). Files, stored responses, batches, API keys and rate limits are
always in the first shard, whose prefix is ``PREFIX``. A separate Redis server for images (see
``image_stores``) contains only ``blob:{digest}``.

======================= ====== ===================================== ======================================
key                     type   contents; written by                  expiry
======================= ====== ===================================== ======================================
wait:{model}            ZSET   job -> fair score; submit, requeue    when the last of its jobs expires
wait-high, wait-low     ZSET   same as wait, for other priorities    same as wait
suspects:{model}        ZSET   same as wait, for quarantined jobs    same as wait
since:{model}           ZSET   job -> arrival time                   same as wait
backlog:{model}         STRING total cost of all waiting jobs        same as wait
ward:{model}            STRING worker draining for a quarantined job lease
trial:{model}           STRING set after a quarantined job; pull, emit 2 s
served:{model}:{n}      STRING cost served in 10-second bucket n     70 s
fair:{model}            ZSET   queue, tenant -> next start; submit   1 h after last use
clock:{model}           STRING virtual time of the fair queue; pull  1 h after last use
wake:{model}            LIST   one element if jobs are waiting       1 min
job:{job}               HASH   state, payload, owner etc.; all       5 min after the deadline or completion
log:{job}               LIST   packed events (checkpoint); emit      when its job expires
jobs:{tenant}           ZSET   "job size" -> expiry time             when the last of its jobs expires
job_bytes:{tenant}      STRING sum of the sizes in jobs:{tenant}     same as jobs:{tenant}
tenant:{tenant}         HASH   live job -> cost                      when the last of its jobs expires
load:{tenant}           STRING "jobs cost", sums of tenant:{tenant}  10 min; then computed again
live:{controller}       SET    jobs that the controller streams      when the last of its jobs expires
inflight:{worker}       HASH   job -> assignment, route, log length  when the last of its jobs expires
heartbeat:{worker}      STRING packed Heartbeat; heartbeat           lease
digests:{model}         ZSET   digest of a worker's model -> lease   lease
steps:{model}           ZSET   worker -> time per engine step        lease
moved:{model}           STRING set after a job left a slow worker    0.5 s
order:{worker}          HASH   pending command; send_command         1 min after the last heartbeat
out:{controller}        STREAM frames to deliver; emit, reap_workers 10 min after last use; 8 MiB
out_bytes:{controller}  STRING approximate size of the stream        10 min
beats:{controller}      STRING number of the last beat; reap_workers 10 min after last use
blob:{digest}           STRING image tiles; submit, supply_images    when the last of its jobs expires
ref:{digest}            STRING size of an image in an image store    when the last of its jobs expires
users:{digest}          SET    live jobs that use the image          when the last of its jobs expires
pixels:{tenant}         ZSET   "digest size" -> expiry time          when the last of its images expires
pixel_bytes:{tenant}    STRING sum of the sizes in pixels:{tenant}   same as pixels:{tenant}
rate:{tenant}           HASH   requests, tokens left; rate_limit     when the buckets are full
file:{file}             HASH   tenant, size, packed StoredFile       7 days (setting); 10 min during upload
bytes:{file}            STRING contents of the file; files           when its file expires
files:{tenant}          ZSET   "file size" -> expiry time            when the last of its files expires
file_bytes:{tenant}     STRING sum of the sizes in files:{tenant}    same as files:{tenant}
response:{response}     HASH   tenant, previous, packed head         7 days (setting) after its last use
input:{response}        STRING input of the response; responses      when its response expires
output:{response}       STRING output of the response; responses     when its response expires
responses:{tenant}      ZSET   "response size" -> expiry time        when the last of its responses expires
response_bytes:{tenant} STRING sum of sizes in responses:{tenant}    same as responses:{tenant}
chats:{tenant}          ZSET   listed response -> expiry time        when the last of its responses expires
batch:{batch}           HASH   state, driver, counts; batches        window + 7 days
results:{batch}         HASH   line -> result                        when its batch finishes or expires
batches:{tenant}        ZSET   batch -> arrival time                 when the last of its batches expires
batching:{tenant}       SET    unfinished batches                    when the last of its batches expires
reaped                  STRING set by each reap_workers call         lease
crashed                 ZSET   crashed worker -> end of its lease    4 leases
crash:{worker}          SET    jobs doubted because of this crash    4 leases
workers                 ZSET   worker -> end of lease                permanent; dead workers are removed
progress                ZSET   worker -> deadline for progress       permanent; dead workers are removed
controllers             ZSET   controller -> time of last beat       permanent; dead controllers are removed
jobs                    ZSET   "job size" -> expiry time             permanent; expired entries are removed
job_bytes               STRING sum of the sizes in jobs              permanent
pixels                  ZSET   "digest size" -> expiry time          permanent; expired entries are removed
pixel_bytes             STRING sum of the sizes in pixels            permanent
files                   ZSET   "file size" -> expiry time            permanent; expired entries are removed
file_bytes              STRING sum of the sizes in files             permanent
responses               ZSET   "response size" -> expiry time        permanent; expired entries are removed
response_bytes          STRING sum of the sizes in responses         permanent
unsaved                 ZSET   response -> next look for its output  permanent; finished responses are removed
batches                 ZSET   unfinished batch -> end of lease      permanent; finished batches are removed
keys                    HASH   digest -> packed ApiKey; add_api_key  permanent
dlq                     STREAM dead letters; reap_workers            permanent; ~1,000 entries
======================= ====== ===================================== ======================================

Scripts build these names with the ``key`` function in ``scripts/shared/base.lua``. Python code uses only the
names defined below.
"""

from __future__ import annotations

__all__ = ["PERMANENT", "PREFIX", "blob_key", "out_key", "wake_key"]

PREFIX = "{lv}:"
_NAMES = (
    "workers",
    "progress",
    "controllers",
    "jobs",
    "job_bytes",
    "pixels",
    "pixel_bytes",
    "files",
    "file_bytes",
    "responses",
    "response_bytes",
    "unsaved",
    "batches",
    "keys",
    "dlq",
)
# Keys without a TTL. Every other key gets a TTL in the script that creates it.
PERMANENT = tuple(PREFIX + name for name in _NAMES)


def blob_key(digest: str, prefix: str = PREFIX) -> str:
    return f"{prefix}blob:{digest}"


def out_key(controller_id: str, prefix: str = PREFIX) -> str:
    return f"{prefix}out:{controller_id}"


def wake_key(model: str, prefix: str = PREFIX) -> str:
    return f"{prefix}wake:{model}"
