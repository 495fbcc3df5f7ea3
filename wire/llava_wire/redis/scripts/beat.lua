-- beat: the worker's process lives. Renews its lease and its announcement, and tells it its order; one that it has
-- settled is forgotten.
-- ARGV: worker, lease_ms, heartbeat, settled order   Answer: {} or {id, packed Instruction}
local order = key('order', ARGV[1])
redis.call('ZADD', PREFIX .. 'workers', now + tonumber(ARGV[2]), ARGV[1])
redis.call('SET', key('heartbeat', ARGV[1]), ARGV[3], 'PX', ARGV[2])
local id, what = unpack(redis.call('HMGET', order, 'id', 'what'))
if not id then return {} end
if id == ARGV[4] then
  redis.call('DEL', order)
  return {}
end
redis.call('PEXPIRE', order, ORDER_MS)
return {id, what}
