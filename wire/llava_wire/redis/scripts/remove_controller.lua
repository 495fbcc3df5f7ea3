-- remove_controller: a controller ends, or gives up an old identity. Jobs that are still its own had ended before Redis
-- lost memory; they are cancelled.
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
