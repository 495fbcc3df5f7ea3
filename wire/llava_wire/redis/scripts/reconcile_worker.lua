-- reconcile_worker: resolve differences between the jobs that a worker holds and its assignments in Redis. Jobs that
-- are assigned to the worker but not held by it are requeued, except for those from a pull in progress, which are
-- identified by their nonces.
-- ARGV: worker, number of nonces, nonce..., (job, assignment)...   Reply: the held jobs that are no longer assigned
-- Uses shared/base.lua: key, unpack_slot; shared/fair_queue.lua: requeue.
local slots = key('inflight', ARGV[1])
local num_nonces = tonumber(ARGV[2])
local pulling, held, assigned, lost = {}, {}, {}, {}
for i = 3, 2 + num_nonces do pulling[ARGV[i]] = true end
for i = 3 + num_nonces, #ARGV, 2 do held[ARGV[i]] = ARGV[i + 1] end
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do
  local id = flat[i]
  local assignment, _, length = unpack_slot(flat[i + 1])
  assigned[id] = assignment
  if held[id] ~= assignment and not pulling[assignment] then
    redis.call('HDEL', slots, id)
    requeue(id, length)
  end
end
for id, assignment in pairs(held) do
  if assigned[id] ~= assignment then lost[#lost + 1] = id end
end
return lost
