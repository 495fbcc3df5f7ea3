-- forget: nothing is kept of a tenant's job but a mark that it was: its log and its outline go. One that is not over is
-- cancelled first, which the controller that streams it is told. The mark lives as long as the answer would have: a
-- controller that has not heard the end must find the job cancelled, not lost, or it would make it anew. The same call
-- sent twice finds its nonce; a job of the same id may begin anew, as after a cancel.
-- ARGV: job, tenant, nonce   Answer: 1 forgotten, 0 there is no such job of this tenant
local id, tenant, nonce = unpack(ARGV)
local job = key('job', id)
local state, owner_tenant, owner, former = unpack(redis.call('HMGET', job, 'state', 'tenant', 'controller', 'forgotten'))
if owner_tenant ~= tenant then return 0 end
if former then return former == nonce and 1 or 0 end
if state ~= 'done' and state ~= 'cancelled' then
  fence(id)
  end_job(id, 'cancelled')
  nudge(owner, id)
end
redis.call('HDEL', job, 'payload', 'digests', 'outline')
redis.call('HSET', job, 'state', 'cancelled', 'forgotten', nonce)
redis.call('DEL', key('log', id))
return 1
