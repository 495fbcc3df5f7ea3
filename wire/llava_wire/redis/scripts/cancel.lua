-- cancel: end a job without further events. The next emit of a worker that runs it is rejected, and the controller
-- that streams it receives a resync request. With `only_owner`, the call changes nothing if another controller owns
-- the job. A job that `read_job` read within `recent_ms` is not cancelled. With a `nonce`, only the submission or
-- takeover with that nonce is cancelled, not the same job for a later reader.
-- ARGV: job, tenant, controller, only_owner, recent_ms, nonce
-- Reply: 1 cancelled, 0 nothing to cancel, 2 not cancelled because another reader uses the job
-- Uses shared/base.lua: key, now, request_resync; shared/jobs.lua: fence, end_job.
local id, tenant, controller, only_owner, recent, nonce = unpack(ARGV)
local state, owner_tenant, owner, peeked, current_nonce =
  unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'controller', 'peeked', 'nonce'))
if owner_tenant ~= tenant or (owner ~= controller and only_owner == '1') then return 0 end
if state == 'done' or state == 'cancelled' then return 0 end
if nonce ~= '' and current_nonce ~= nonce then return 2 end
if peeked and now - peeked < tonumber(recent) then return 2 end
fence(id)
end_job(id, 'cancelled')
if owner ~= controller then request_resync(owner, id) end
return 1
