-- delete: remove a tenant's job, its log and its outline; only a mark remains that it existed. A job that has not ended
-- is cancelled first, and its controller is told. The mark lives as long as the log would have: a controller that has
-- not received the end must find the job cancelled, not lost, or it would create it again. The same call sent twice
-- finds its nonce; a job of the same ID may begin anew, as after a cancel.
-- ARGV: job, tenant, nonce   Reply: 1 deleted, 0 there is no such job of this tenant
local id, tenant, nonce = unpack(ARGV)
local job = key('job', id)
local state, owner_tenant, owner, former = unpack(redis.call('HMGET', job, 'state', 'tenant', 'controller', 'forgotten'))
if owner_tenant ~= tenant then return 0 end
if former then return former == nonce and 1 or 0 end
if state ~= 'done' and state ~= 'cancelled' then
  fence(id)
  end_job(id, 'cancelled')
  request_resync(owner, id)
end
redis.call('HDEL', job, 'payload', 'digests', 'outline')
redis.call('HSET', job, 'state', 'cancelled', 'forgotten', nonce)
redis.call('DEL', key('log', id))
return 1
