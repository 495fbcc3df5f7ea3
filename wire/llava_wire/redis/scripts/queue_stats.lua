-- queue_stats: return the number and cost of waiting jobs by model, the number of running jobs by worker, and the number
-- of live workers, controllers and dead letters. Read-only.
-- ARGV: model...   Reply: {{waiting, cost...}, {worker, running...}, workers, controllers, dead letters}
-- Uses shared/base.lua: PREFIX, now, key; shared/fair_queue.lua: num_waiting.
local waiting, running = {}, {}
for _, model in ipairs(ARGV) do
  waiting[#waiting + 1] = num_waiting(model)
  waiting[#waiting + 1] = redis.call('GET', key('backlog', model)) or '0'
end
local workers = redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')
for _, worker in ipairs(workers) do
  running[#running + 1] = worker
  running[#running + 1] = redis.call('HLEN', key('inflight', worker))
end
return {waiting, running, #workers, redis.call('ZCARD', PREFIX .. 'controllers'), redis.call('XLEN', PREFIX .. 'dlq')}
