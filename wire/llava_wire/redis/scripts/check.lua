-- check: which of a controller's jobs are not as it believes: gone, ended, parked, taken over, or with another number of
-- frames in the log than it has delivered. Finds lost notices; reads only.
-- ARGV: controller, (job, number of frames)...   Reply: {job...}
local changed = {}
for i = 2, #ARGV, 2 do
  local state, controller = unpack(redis.call('HMGET', key('job', ARGV[i]), 'state', 'controller'))
  local length = redis.call('LLEN', key('log', ARGV[i]))
  if (state ~= 'queued' and state ~= 'running') or controller ~= ARGV[1] or length ~= tonumber(ARGV[i + 1]) then
    changed[#changed + 1] = ARGV[i]
  end
end
return changed
