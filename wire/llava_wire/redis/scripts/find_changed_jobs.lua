-- find_changed_jobs: return those jobs of a controller whose state in Redis is not what the controller expects: jobs
-- that are missing, have ended, are parked, have been taken over, or have more or fewer frames in their logs than the
-- controller has delivered. This detects lost stream entries. Read-only.
-- ARGV: controller, (job, number of frames)...   Reply: {job...}
-- Uses shared/base.lua: key.
local changed = {}
for i = 2, #ARGV, 2 do
  local state, controller = unpack(redis.call('HMGET', key('job', ARGV[i]), 'state', 'controller'))
  local length = redis.call('LLEN', key('log', ARGV[i]))
  if (state ~= 'queued' and state ~= 'running') or controller ~= ARGV[1] or length ~= tonumber(ARGV[i + 1]) then
    changed[#changed + 1] = ARGV[i]
  end
end
return changed
