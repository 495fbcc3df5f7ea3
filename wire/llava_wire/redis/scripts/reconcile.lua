-- reconcile: heal what nobody foresaw. Assignments that Redis has for this worker and the worker does not hold go
-- back to the queue, but not those of a pull still under way (its nonces). Answers the held jobs that are not its
-- own any more.
-- ARGV: worker, number of nonces, nonce..., (job, assignment)...
local slots = key('inflight', ARGV[1])
local num_nonces = tonumber(ARGV[2])
local pulling, held, ours, lost = {}, {}, {}, {}
for i = 3, 2 + num_nonces do pulling[ARGV[i]] = true end
for i = 3 + num_nonces, #ARGV, 2 do held[ARGV[i]] = ARGV[i + 1] end
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do
  local id = flat[i]
  local assignment, _, length = read_slot(flat[i + 1])
  ours[id] = assignment
  if held[id] ~= assignment and not pulling[assignment] then
    redis.call('HDEL', slots, id)
    put_back(id, length)
  end
end
for id, assignment in pairs(held) do
  if ours[id] ~= assignment then lost[#lost + 1] = id end
end
return lost
