-- heartbeats: return the heartbeats of the live workers. Read-only.
-- Reply: {heartbeat...}
-- Uses shared/base.lua: PREFIX, now, key.
local heartbeats = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')) do
  heartbeats[#heartbeats + 1] = redis.call('GET', key('heartbeat', worker)) or nil
end
return heartbeats
