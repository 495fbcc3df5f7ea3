-- cancel: cancel a job without emitting further events. If a worker is running the job, its next emit for the job is
-- rejected. If another controller is streaming the job, that controller receives a resync request. If `only_owner` is
-- 1, the call has no effect on a job that another controller owns. A job that `read_job` has read within the last
-- `recent_ms` is not cancelled. If `nonce` is set, only the submission or takeover with that nonce is cancelled, so
-- that later readers of the same job are not affected.
-- ARGV: job, tenant, controller, only_owner, recent_ms, nonce
-- Reply: 1 cancelled, 0 nothing to cancel, 2 not cancelled because of another nonce, 3 not cancelled because another
-- connection is reading the job. See CancelReply.
-- Uses shared/base.lua: key, now, request_resync; shared/jobs.lua: fence, end_job.
local id, tenant, controller, only_owner, recent, nonce = unpack(ARGV)
local state, owner_tenant, owner, peeked, current_nonce =
  unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'controller', 'peeked', 'nonce'))
if owner_tenant ~= tenant or (owner ~= controller and only_owner == '1') then return 0 end
if state == 'done' or state == 'cancelled' then return 0 end
if nonce ~= '' and current_nonce ~= nonce then return 2 end
if peeked and now - peeked < tonumber(recent) then return 3 end
fence(id)
end_job(id, 'cancelled')
if owner and owner ~= controller then request_resync(owner, id) end
return 1
