-- delete: delete a tenant's job, including its log and outline. An unfinished job is cancelled first, and its
-- controller receives a resync request. The job's hash is kept as a tombstone in state 'cancelled' for as long as the
-- log would have been stored. Without a tombstone, a controller that has not received the final event would recreate
-- the job. A repeated call finds its nonce in the tombstone. As after a cancellation, a job with the same ID can be
-- submitted again.
-- ARGV: job, tenant, nonce   Reply: 1 if deleted, 0 if the tenant has no such job
-- Uses shared/base.lua: key, request_resync; shared/jobs.lua: fence, end_job, count_job,
--   job_size, ENDED_OVERHEAD.
local id, tenant, nonce = unpack(ARGV)
local job = key('job', id)
local state, owner_tenant, owner, former = unpack(redis.call('HMGET', job, 'state', 'tenant', 'controller', 'forgotten'))
if owner_tenant ~= tenant then return 0 end
if former then return former == nonce and 1 or 0 end
if state ~= 'done' and state ~= 'cancelled' then
  fence(id)
  end_job(id, 'cancelled')
  if owner then request_resync(owner, id) end
end
redis.call('HDEL', job, 'payload', 'digests', 'outline')
redis.call('HSET', job, 'state', 'cancelled', 'forgotten', nonce)
redis.call('DEL', key('log', id))
count_job(id, tenant, job_size(id, ENDED_OVERHEAD), redis.call('PTTL', job))
return 1
