-- queue_stats: return the number and cost of waiting jobs by model, the number of running jobs by worker, and the
-- heartbeats of the live workers. Read-only.
-- ARGV: model...   Reply: {{waiting, cost...}, {worker, running...}, {heartbeat...}, controllers, dead letters}
-- Uses shared/base.lua: PREFIX, now, key; shared/fair_queue.lua: num_waiting.
local waiting, heartbeats, running = {}, {}, {}
for _, model in ipairs(ARGV) do
  waiting[#waiting + 1] = num_waiting(model)
  waiting[#waiting + 1] = redis.call('GET', key('backlog', model)) or '0'
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')) do
  running[#running + 1] = worker
  running[#running + 1] = redis.call('HLEN', key('inflight', worker))
  local heartbeat = redis.call('GET', key('heartbeat', worker))
  if heartbeat then heartbeats[#heartbeats + 1] = heartbeat end
end
return {waiting, running, heartbeats, redis.call('ZCARD', PREFIX .. 'controllers'), redis.call('XLEN', PREFIX .. 'dlq')}
