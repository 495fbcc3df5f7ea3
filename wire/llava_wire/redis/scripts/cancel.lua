-- cancel: the job ends without further events; a worker that runs it is refused at its next emit. With
-- `only_owner`, a controller that has lost the job to another one changes nothing. A cancel through another
-- controller is told to the one that streams the job. A job that somebody has peeked at within `spare_ms` is left alone.
-- With a `nonce` only what was submitted or attached to under it is cancelled, not the same job for its next reader.
-- ARGV: job, tenant, controller, only_owner, spare_ms, nonce
-- Answer: 1 cancelled, 0 nothing to cancel, 2 spared: somebody else reads it
local id, tenant, controller, only_owner, spare, nonce = unpack(ARGV)
local state, owner_tenant, owner, peeked, its_nonce =
  unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'controller', 'peeked', 'nonce'))
if owner_tenant ~= tenant or (owner ~= controller and only_owner == '1') then return 0 end
if state == 'done' or state == 'cancelled' then return 0 end
if nonce ~= '' and its_nonce ~= nonce then return 2 end
if peeked and now - peeked < tonumber(spare) then return 2 end
fence(id)
end_job(id, 'cancelled')
if owner ~= controller then nudge(owner, id) end
return 1
