-- peek: read on in a job's log without taking over its stream: for a second reader of the same answer. It leaves a
-- mark, so that the job is not cancelled for want of readers.
-- ARGV: job, tenant, number of frames known   Answer: {} or {state, model, {frame...}}
local id, tenant = ARGV[1], ARGV[2]
local state, owner_tenant, model = unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'model'))
if owner_tenant ~= tenant then return {} end
redis.call('HSET', key('job', id), 'peeked', now)
return {state, model, redis.call('LRANGE', key('log', id), ARGV[3], -1)}
