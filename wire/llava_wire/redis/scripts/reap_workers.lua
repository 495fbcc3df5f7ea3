-- reap_workers: record a controller's beat and requeue the jobs of dead workers. Each controller calls this script once
-- per second. If a worker's lease has expired, or if the worker holds jobs but makes no progress, all its jobs return
-- to the queue. Any of them may have caused the crash, so after two worker crashes, a job runs alone (quarantine).
-- Crashes of several workers at the same time do not count. After max_crashes, a job that was alone on its last worker ends with the event in `payload` and is added to the
-- dead-letter stream. If a controller has not sent a beat for orphan_ms, its jobs end as orphans, except for background
-- jobs, which run to completion and can be read from their logs. If no controller has called this script recently,
-- Redis was probably unavailable and could not receive beats, so all workers and controllers first receive a new lease.
-- `beat` is the sequence number of the controller's call; if the previous beat is missing, Redis has lost data.
-- ARGV: controller, beat, max_crashes, orphan_ms, lease_ms, payload   Reply: {jobs requeued, 1 if data was lost}
-- Uses shared/base.lua: PREFIX, key, OUT_MS, touch_controller, extend, now, notify, unpack_slot; shared/budget.lua:
--   discount_all_expired; shared/fair_queue.lua: MAX_EXCUSED, requeue, withdraw_doubt; shared/jobs.lua: append_frame, end_job,
--   fence.
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

-- Workers whose leases end within half a lease of each other did not crash because of the same request: a worker that
-- resumes the request of a lost worker renews its own lease when it pulls the request. Such crashes have another cause,
-- for example a failed host, and are no evidence against any request. `crashed` contains the ends of the recent leases,
-- and `crash:{worker}` the jobs that were doubted because of that worker's crash.
local RECENT = PREFIX .. 'crashed'

-- Records a crash. Returns whether other workers crashed at the same time. If so, their crashes are no evidence either.
local function is_shared_crash(worker, lease_end)
  redis.call('ZADD', RECENT, lease_end, worker)
  redis.call('ZREMRANGEBYSCORE', RECENT, '-inf', now - 4 * lease)
  redis.call('PEXPIRE', RECENT, 4 * lease)
  local others = redis.call('ZRANGEBYSCORE', RECENT, '(' .. lease_end - lease / 2, '(' .. lease_end + lease / 2)
  for _, other in ipairs(others) do
    for _, id in ipairs(other ~= worker and redis.call('SMEMBERS', key('crash', other)) or {}) do withdraw_doubt(id) end
    if other ~= worker then redis.call('DEL', key('crash', other)) end
  end
  return #others > 1
end

local function crash(id, worker, length, reason, was_alone, is_shared)
  local job = key('job', id)
  local crashes = redis.call('HINCRBY', job, 'crashes', 1)
  if is_shared and crashes <= MAX_EXCUSED then return requeue(id, length) end
  local doubts = redis.call('HINCRBY', job, 'doubts', 1)
  redis.call('SADD', key('crash', worker), id)
  redis.call('PEXPIRE', key('crash', worker), 4 * lease)
  if doubts < max_crashes or not was_alone then return requeue(id, length) end
  local owner, tenant, model, request = unpack(redis.call('HMGET', job, 'controller', 'tenant', 'model', 'payload'))
  notify(owner, {id .. ' ' .. append_frame(id, payload), payload})
  end_job(id, 'done')
  if #request > MAX_LETTER then request = '' end
  redis.call('XADD', PREFIX .. 'dlq', 'MAXLEN', '~', 1000, '*', 'job', id, 'tenant', tenant, 'model', model,
    'worker', worker, 'crashes', crashes, 'tokens', length, 'reason', reason, 'payload', request)
end

discount_all_expired()

local count = 0
local function release_jobs(worker, lease_end, reason)
  local slots = key('inflight', worker)
  local flat = redis.call('HGETALL', slots)
  local is_shared = #flat > 0 and is_shared_crash(worker, lease_end)
  for i = 1, #flat, 2 do
    local _, _, length = unpack_slot(flat[i + 1])
    delete_if_damaged(flat[i])
    if redis.call('EXISTS', key('job', flat[i])) == 1 then
      crash(flat[i], worker, length, reason, #flat == 2, is_shared)
      count = count + 1
    end
  end
  redis.call('DEL', slots)
  redis.call('ZREM', progress, worker)
end

local expired = redis.call('ZRANGEBYSCORE', workers, '-inf', now, 'WITHSCORES')
for i = 1, #expired, 2 do
  local worker = expired[i]
  release_jobs(worker, tonumber(expired[i + 1]), 'worker lease expired')
  redis.call('ZREM', workers, worker)
  redis.call('DEL', key('heartbeat', worker))
end
expired = redis.call('ZRANGEBYSCORE', progress, '-inf', now, 'WITHSCORES')
for i = 1, #expired, 2 do release_jobs(expired[i], tonumber(expired[i + 1]), 'worker made no progress') end

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
