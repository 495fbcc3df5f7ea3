-- inspect: who does what at this moment, for people. Reads only.
-- ARGV: model...
-- Answer: {{worker, heartbeat, {job, tokens...}, ms that its sign of progress is overdue, its order or ''}...},
--   {controller, ms since its beat...}, {{waiting by priority: high, normal, low, suspects, backlog}...}, dead letters
local workers, rooms = {}, {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'workers', '(' .. now, '+inf')) do
  local jobs = {}
  local flat = redis.call('HGETALL', key('inflight', worker))
  for i = 1, #flat, 2 do
    local _, _, length = read_slot(flat[i + 1])
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
  local room = {}
  for _, name in ipairs(ROOMS) do room[#room + 1] = redis.call('ZCARD', key(name, model)) end
  room[#room + 1] = redis.call('ZCARD', key(WARD, model))
  room[#room + 1] = math.floor(tonumber(redis.call('GET', key('backlog', model)) or '0'))
  rooms[#rooms + 1] = room
end
return {workers, controllers, rooms, redis.call('XLEN', PREFIX .. 'dlq')}
