-- give_back: jobs of a draining worker return to their place in the queue, not counted as crashes. An assignment
-- that is no longer the current one is left alone, so the call may be sent twice.
-- ARGV: worker, (job, assignment)...
local slots = key('inflight', ARGV[1])
local count = 0
for i = 2, #ARGV, 2 do
  local assignment, _, length = read_slot(redis.call('HGET', slots, ARGV[i]))
  if assignment == ARGV[i + 1] then
    redis.call('HDEL', slots, ARGV[i])
    put_back(ARGV[i], length)
    count = count + 1
  end
end
return count
