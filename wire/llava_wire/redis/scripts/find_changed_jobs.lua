-- find_changed_jobs: return those jobs of a controller whose state in Redis is not what the controller expects: jobs
-- that are missing, damaged or parked, have ended, have been taken over, wait in no queue, run on no worker, or have
-- more or fewer frames in their logs than the controller has delivered. This detects lost keys and stream entries.
-- ARGV: controller, (job, number of frames)...   Reply: {job...}
-- Uses shared/base.lua: key, PREFIX, unpack_slot; shared/jobs.lua: queue_with.
local function has_place(id, state, model, worker, assignment)
  if state == 'queued' then return queue_with(id, model) ~= nil end
  if state ~= 'running' or not redis.call('ZSCORE', PREFIX .. 'workers', worker) then return false end
  return unpack_slot(redis.call('HGET', key('inflight', worker), id)) == assignment
end

local changed = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  delete_if_damaged(id)
  local state, controller, model, worker, assignment =
    unpack(redis.call('HMGET', key('job', id), 'state', 'controller', 'model', 'worker', 'assignment'))
  local length = redis.call('LLEN', key('log', id))
  if not state or controller ~= ARGV[1] or length ~= tonumber(ARGV[i + 1])
    or redis.call('SISMEMBER', key('live', controller), id) == 0
    or not has_place(id, state, model, worker or '', assignment) then
    changed[#changed + 1] = id
  end
end
return changed
