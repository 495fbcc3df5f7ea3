-- queue_stats: return the number of waiting and running jobs and the heartbeats of the live workers. Read-only.
-- ARGV: model...   Reply: {{waiting...}, running, {heartbeat...}, controllers, dead letters}
-- Uses shared/base.lua: PREFIX, now, key; shared/fair_queue.lua: num_waiting.
local waiting, heartbeats, running = {}, {}, 0
for _, model in ipairs(ARGV) do waiting[#waiting + 1] = num_waiting(model) end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')) do
  running = running + redis.call('HLEN', key('inflight', worker))
  local heartbeat = redis.call('GET', key('heartbeat', worker))
  if heartbeat then heartbeats[#heartbeats + 1] = heartbeat end
end
return {waiting, running, heartbeats, redis.call('ZCARD', PREFIX .. 'controllers'), redis.call('XLEN', PREFIX .. 'dlq')}
