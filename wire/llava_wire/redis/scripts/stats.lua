-- stats: how many jobs wait and run, and the heartbeats of the live workers. Reads only.
-- ARGV: model...   Reply: {{waiting...}, running, {heartbeat...}, controllers, dead letters}
local waiting, heartbeats, running = {}, {}, 0
for _, model in ipairs(ARGV) do waiting[#waiting + 1] = num_waiting(model) end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')) do
  running = running + redis.call('HLEN', key('inflight', worker))
  local heartbeat = redis.call('GET', key('heartbeat', worker))
  if heartbeat then heartbeats[#heartbeats + 1] = heartbeat end
end
return {waiting, running, heartbeats, redis.call('ZCARD', PREFIX .. 'controllers'), redis.call('XLEN', PREFIX .. 'dlq')}
