-- queue_stats: return the number of waiting and running jobs, live workers, controllers and dead letters. Read-only.
-- ARGV: model...   Reply: {{waiting...}, running, workers, controllers, dead letters}
-- Uses shared/base.lua: PREFIX, now, key; shared/fair_queue.lua: num_waiting.
local waiting, running = {}, 0
for _, model in ipairs(ARGV) do waiting[#waiting + 1] = num_waiting(model) end
local workers = redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')
for _, worker in ipairs(workers) do running = running + redis.call('HLEN', key('inflight', worker)) end
return {waiting, running, #workers, redis.call('ZCARD', PREFIX .. 'controllers'), redis.call('XLEN', PREFIX .. 'dlq')}
