-- requeue: jobs of a draining worker return to their positions in the queue, not counted as crashes. An assignment that
-- is not the current one is left alone, so the call may be sent twice.
-- ARGV: worker, (job, assignment)...
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
