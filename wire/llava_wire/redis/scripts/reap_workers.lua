-- reap_workers: record a controller's beat and requeue the jobs of dead workers. Each controller calls this script once
-- per second. If a worker's lease has expired, or if the worker holds jobs but makes no progress, all its jobs return
-- to the queue. Any of them may have caused the crash, so after two worker crashes, a job runs alone (quarantine).
-- After max_crashes, a job that was alone on its last worker ends with the event in `payload` and is added to the
-- dead-letter stream. If a controller has not sent a beat for orphan_ms, its jobs end as orphans, except for background
-- jobs, which run to completion and can be read from their logs. If no controller has called this script recently,
-- Redis was probably unavailable and could not receive beats, so all workers and controllers first receive a new lease.
-- `beat` is the sequence number of the controller's call; if the previous beat is missing, Redis has lost data.
-- ARGV: controller, beat, max_crashes, orphan_ms, lease_ms, payload   Reply: {jobs requeued, 1 if data was lost}
-- Uses shared/base.lua: PREFIX, key, OUT_MS, touch_controller, extend, now, notify, unpack_slot; shared/images.lua:
--   discount_expired_images; shared/fair_queue.lua: requeue; shared/jobs.lua: append_frame, end_job, fence.
local controller, beat, max_crashes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local orphan, lease, payload = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local MAX_LETTER = 65536 -- maximum size in bytes of a request that is stored in a dead letter
local workers, progress, controllers = PREFIX .. 'workers', PREFIX .. 'progress', PREFIX .. 'controllers'

local last_beat = tonumber(redis.call('GET', key('beats', controller)) or '0')
local has_lost_memory = last_beat < beat - 1
redis.call('SET', key('beats', controller), math.max(beat, last_beat), 'PX', OUT_MS)
touch_controller(controller)
extend(key('out', controller), OUT_MS)

local function renew(name, deadline)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', name, '-inf', deadline)) do
    redis.call('ZADD', name, deadline, member)
  end
end
if redis.call('EXISTS', PREFIX .. 'reaped') == 0 then
  renew(workers, now + lease)
  renew(progress, now + lease)
  renew(controllers, now)
end
redis.call('SET', PREFIX .. 'reaped', '1', 'PX', math.max(lease, 3000))

local function crash(id, worker, length, reason, was_alone)
  local job = key('job', id)
  local crashes, doubts = redis.call('HINCRBY', job, 'crashes', 1), redis.call('HINCRBY', job, 'doubts', 1)
  if doubts < max_crashes or not was_alone then return requeue(id, length) end
  local owner, tenant, model, request = unpack(redis.call('HMGET', job, 'controller', 'tenant', 'model', 'payload'))
  notify(owner, {id .. ' ' .. append_frame(id, payload), payload})
  end_job(id, 'done')
  if #request > MAX_LETTER then request = '' end
  redis.call('XADD', PREFIX .. 'dlq', 'MAXLEN', '~', 1000, '*', 'job', id, 'tenant', tenant, 'model', model,
    'worker', worker, 'crashes', crashes, 'tokens', length, 'reason', reason, 'payload', request)
end

discount_expired_images()

local count = 0
local function release_jobs(worker, reason)
  local slots = key('inflight', worker)
  local flat = redis.call('HGETALL', slots)
  for i = 1, #flat, 2 do
    local _, _, length = unpack_slot(flat[i + 1])
    if redis.call('EXISTS', key('job', flat[i])) == 1 then
      crash(flat[i], worker, length, reason, #flat == 2)
      count = count + 1
    end
  end
  redis.call('DEL', slots)
  redis.call('ZREM', progress, worker)
end

for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', now)) do
  release_jobs(worker, 'worker lease expired')
  redis.call('ZREM', workers, worker)
  redis.call('DEL', key('heartbeat', worker))
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', progress, '-inf', now)) do
  release_jobs(worker, 'worker made no progress')
end
local function is_background(id)
  local outline = redis.call('HGET', key('job', id), 'outline')
  return outline and cmsgpack.unpack(outline).is_background
end

for _, dead in ipairs(redis.call('ZRANGEBYSCORE', controllers, '-inf', now - orphan)) do
  for _, id in ipairs(redis.call('SMEMBERS', key('live', dead))) do
    if redis.call('HGET', key('job', id), 'controller') == dead and not is_background(id) then
      local length = fence(id)
      if length then redis.call('HSET', key('job', id), 'length', length) end
      end_job(id, 'orphaned')
    end
  end
  redis.call('DEL', key('live', dead), key('beats', dead))
  redis.call('ZREM', controllers, dead)
end
return {count, has_lost_memory and 1 or 0}
