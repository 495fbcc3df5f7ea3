-- peek: read on in a job's log without taking over its stream: for a second reader of the same answer. It leaves a
-- mark, so that the job is not cancelled for want of readers. If its controller is silent the job counts as orphaned:
-- the caller may attach to it.
-- ARGV: job, tenant, number of frames known   Answer: {} or {state, outline, {frame...}, end of its life}
local id, tenant = ARGV[1], ARGV[2]
local DESERTED_MS = 3000
local state, owner_tenant, outline, owner, ends =
  unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'outline', 'controller', 'ends'))
if owner_tenant ~= tenant or not outline then return {} end -- without an outline: forgotten
redis.call('HSET', key('job', id), 'peeked', now)
local seen = tonumber(redis.call('ZSCORE', PREFIX .. 'controllers', owner) or '0')
if state ~= 'done' and state ~= 'cancelled' and now - seen > DESERTED_MS then state = 'orphaned' end
return {state, outline, redis.call('LRANGE', key('log', id), ARGV[3], -1), tonumber(ends)}
