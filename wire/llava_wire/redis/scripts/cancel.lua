-- cancel: end a job without further events; a worker that runs it is refused at its next emit. With `only_owner`, a
-- controller that has lost the job to another one changes nothing. The controller that streams the job is told. A job
-- that was read by `snapshot` within `recent_ms` is spared. With a `nonce` only the submission or take-over with that
-- nonce is cancelled, not the same job for its next reader.
-- ARGV: job, tenant, controller, only_owner, recent_ms, nonce
-- Reply: 1 cancelled, 0 nothing to cancel, 2 spared: another reader has it
local id, tenant, controller, only_owner, recent, nonce = unpack(ARGV)
local state, owner_tenant, owner, peeked, its_nonce =
  unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'controller', 'peeked', 'nonce'))
if owner_tenant ~= tenant or (owner ~= controller and only_owner == '1') then return 0 end
if state == 'done' or state == 'cancelled' then return 0 end
if nonce ~= '' and its_nonce ~= nonce then return 2 end
if peeked and now - peeked < tonumber(recent) then return 2 end
fence(id)
end_job(id, 'cancelled')
if owner ~= controller then request_resync(owner, id) end
return 1
