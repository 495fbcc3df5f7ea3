-- release_jobs: return a worker's jobs to their previous positions in the queue without counting a crash. Outdated
-- assignments are skipped, so that the call can be repeated.
-- ARGV: worker, (job, assignment)...
-- Uses shared/base.lua: key, unpack_slot; shared/fair_queue.lua: requeue.
local slots = key('inflight', ARGV[1])
local count = 0
for i = 2, #ARGV, 2 do
  local assignment, _, length = unpack_slot(redis.call('HGET', slots, ARGV[i]))
  if assignment == ARGV[i + 1] then
    redis.call('HDEL', slots, ARGV[i])
    requeue(ARGV[i], length)
    count = count + 1
  end
end
return count
