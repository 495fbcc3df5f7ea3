-- remove_worker: remove a worker that is shutting down. The jobs that it still holds return to the queue.
-- ARGV: worker
-- Uses shared/base.lua: key, unpack_slot, PREFIX; shared/fair_queue.lua: requeue.
local worker = ARGV[1]
local slots = key('inflight', worker)
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do
  local _, _, length = unpack_slot(flat[i + 1])
  requeue(flat[i], length)
end
redis.call('DEL', slots, key('heartbeat', worker))
redis.call('ZREM', PREFIX .. 'workers', worker)
redis.call('ZREM', PREFIX .. 'progress', worker)
return 1
