-- inspect: return the workers with their jobs, the controllers and the queues, for display. Read-only.
-- ARGV: model...
-- Reply: {{worker, heartbeat, {job, tokens...}, ms by which its progress is overdue, ID of its command or ''}...},
--   {controller, ms since its last beat...}, {{jobs with high, normal and low priority, quarantined jobs, backlog}...},
--   number of dead letters
-- Uses shared/base.lua: PREFIX, now, key, unpack_slot; shared/fair_queue.lua: QUEUES, QUARANTINE.
local workers, queues = {}, {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')) do
  local jobs = {}
  local flat = redis.call('HGETALL', key('inflight', worker))
  for i = 1, #flat, 2 do
    local _, _, length = unpack_slot(flat[i + 1])
    jobs[#jobs + 1] = flat[i]
    jobs[#jobs + 1] = length
  end
  local due = tonumber(redis.call('ZSCORE', PREFIX .. 'progress', worker) or now)
  workers[#workers + 1] = {worker, redis.call('GET', key('heartbeat', worker)) or '', jobs, math.max(now - due, 0),
    redis.call('HGET', key('order', worker), 'id') or ''}
end
local controllers = {}
local beats = redis.call('ZRANGE', PREFIX .. 'controllers', 0, -1, 'WITHSCORES')
for i = 1, #beats, 2 do
  controllers[#controllers + 1] = beats[i]
  controllers[#controllers + 1] = now - tonumber(beats[i + 1])
end
for _, model in ipairs(ARGV) do
  local depth = {}
  for _, name in ipairs(QUEUES) do depth[#depth + 1] = redis.call('ZCARD', key(name, model)) end
  depth[#depth + 1] = redis.call('ZCARD', key(QUARANTINE, model))
  depth[#depth + 1] = math.floor(tonumber(redis.call('GET', key('backlog', model)) or '0'))
  queues[#queues + 1] = depth
end
return {workers, controllers, queues, redis.call('XLEN', PREFIX .. 'dlq')}
