-- disown: a controller that has taken a new identity gives up the old one. What it did not resync had ended before
-- Redis went back in time; it is cancelled.
-- ARGV: controller
local controller = ARGV[1]
for _, id in ipairs(redis.call('SMEMBERS', key('live', controller))) do
  if redis.call('HGET', key('job', id), 'controller') == controller then
    fence(id)
    end_job(id, 'cancelled')
  end
end
redis.call('DEL', key('live', controller), key('out', controller), key('beats', controller))
redis.call('ZREM', PREFIX .. 'controllers', controller)
return 1
