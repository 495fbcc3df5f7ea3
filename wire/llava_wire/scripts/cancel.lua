-- cancel: the job ends without further events; a worker that runs it is refused at its next emit. With
-- `only_owner`, a controller that has lost the job to another one changes nothing. A cancel through another
-- controller is told to the one that streams the job.
-- ARGV: job, tenant, controller, only_owner
local id, tenant, controller, only_owner = unpack(ARGV)
local state, owner_tenant, owner = unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'controller'))
if owner_tenant ~= tenant or (owner ~= controller and only_owner == '1') then return 0 end
if state == 'done' or state == 'cancelled' then return 0 end
fence(id)
end_job(id, 'cancelled')
if owner ~= controller then nudge(owner, id) end
return 1
