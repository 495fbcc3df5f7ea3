-- reconcile_worker: resolve differences between the jobs that a worker holds and its assignments in Redis. Jobs that
-- are assigned to the worker but not held by it are requeued, except for those from a pull in progress, which are
-- identified by their nonces. If only the worker's slot for a job was lost, it is restored. For each job that it holds,
-- the worker passes the number of its last frame and the length of its log in tokens. A frame of -1 means that an emit
-- for the job is in progress. That emit then restores the slot.
-- ARGV: worker, number of nonces, nonce..., (job, assignment, frame, length)...
-- Reply: the held jobs that are no longer assigned
-- Uses shared/base.lua: key, unpack_slot; shared/fair_queue.lua: requeue; shared/jobs.lua: is_assigned, restore_slot.
local slots = key('inflight', ARGV[1])
local num_nonces = tonumber(ARGV[2])
local pulling, held, assigned, lost = {}, {}, {}, {}
for i = 3, 2 + num_nonces do pulling[ARGV[i]] = true end
local place = {}
for i = 3 + num_nonces, #ARGV, 4 do
  held[ARGV[i]] = ARGV[i + 1]
  place[ARGV[i]] = {ARGV[i + 3], ARGV[i + 2]}
end
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
  if not assigned[id] and is_assigned(id, ARGV[1], assignment) then
    local length, frame = unpack(place[id])
    if frame ~= '-1' then restore_slot(ARGV[1], id, assignment, length, frame) end
  elseif assigned[id] ~= assignment then
    lost[#lost + 1] = id
  end
end
return lost
