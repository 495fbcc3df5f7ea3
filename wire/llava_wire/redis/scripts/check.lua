-- check: which of a controller's jobs do not stand as it believes: gone, ended, parked, taken over, or with another
-- number of frames in the log than it has delivered. Heals lost notices; reads only.
-- ARGV: controller, (job, number of frames)...
local doubtful = {}
for i = 2, #ARGV, 2 do
  local state, controller = unpack(redis.call('HMGET', key('job', ARGV[i]), 'state', 'controller'))
  local length = redis.call('LLEN', key('log', ARGV[i]))
  if (state ~= 'queued' and state ~= 'running') or controller ~= ARGV[1] or length ~= tonumber(ARGV[i + 1]) then
    doubtful[#doubtful + 1] = ARGV[i]
  end
end
return doubtful
