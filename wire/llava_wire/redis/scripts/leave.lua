-- leave: the worker is gone for good. What it still holds goes back, its announcement goes.
-- ARGV: worker
local worker = ARGV[1]
local slots = key('inflight', worker)
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do
  local _, _, length = read_slot(flat[i + 1])
  put_back(flat[i], length)
end
redis.call('DEL', slots, key('heartbeat', worker))
redis.call('ZREM', PREFIX .. 'workers', worker)
redis.call('ZREM', PREFIX .. 'progress', worker)
return 1
