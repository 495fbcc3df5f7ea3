-- remove_controller: remove a controller that is shutting down, or the old ID of a controller after data loss in Redis.
-- Any jobs that are still registered under this ID ended before the data loss, so they are cancelled.
-- ARGV: controller
-- Uses shared/base.lua: key, PREFIX; shared/jobs.lua: fence, end_job.
local controller = ARGV[1]
for _, id in ipairs(redis.call('SMEMBERS', key('live', controller))) do
  if redis.call('HGET', key('job', id), 'controller') == controller then
    fence(id)
    end_job(id, 'cancelled')
  end
end
redis.call('DEL', key('live', controller), key('out', controller), key('out_bytes', controller),
  key('beats', controller))
redis.call('ZREM', PREFIX .. 'controllers', controller)
return 1
