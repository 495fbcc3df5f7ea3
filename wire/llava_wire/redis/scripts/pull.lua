-- pull: assign jobs to a worker in fair order, one per nonce. The nonce becomes the assignment ID. A repeated call
-- finds its nonces and returns the same jobs, so that a lost reply does not leave jobs assigned to a worker that never
-- received them. If any images of a job are missing, the job is parked and its controller receives a resync request.
-- Queues are served in order of priority. A job that has waited for PROMOTE_MS is promoted to high priority, unless it
-- waits for other jobs of its own tenant: its score must not exceed the virtual time. A
-- quarantined job is assigned only to a worker that holds no jobs, and that worker receives no other jobs until the
-- quarantined job has been cleared. If no worker becomes idle within DRAIN_AFTER_MS, one of them is selected to finish
-- its current jobs first (key `ward`). Between two quarantined jobs, other waiting jobs are served. A worker without a
-- free slot can request an overflow job: the first job of a tenant that has few jobs on the worker. A slow worker leaves waiting jobs to faster workers with free slots for a moment. A worker that finds no
-- waiting job takes over a job of a slow worker. Each job is moved at most once.
-- ARGV: worker, model, lease_ms, hang_ms, 1 to pull an overflow job, digest of the model, event for a job whose model
--   no longer exists, nonce...
-- Reply: {{job, assignment, length, payload, log, deadline, trace}...}, {digest, bytes...}, now
-- Uses shared/base.lua: key, PREFIX, now, split, unpack_slot, request_resync, notify, pack_slot, extend,
--   wake;
--   shared/images.lua: missing_images; shared/fair_queue.lua: requeue, subtract_backlog, QUARANTINE_CRASHES, QUARANTINE,
--   QUEUES, pause_quarantine, find_overflow, virtual_time, set_virtual_time, num_queued; shared/jobs.lua: append_frame,
--   end_job, fence, queue_with.
local PROMOTE_MS = 30000
local MAX_PROMOTED = 64 -- maximum number of jobs of each queue that one call checks
local DRAIN_AFTER_MS = 10000
-- A worker is slow compared with another one if its engine steps take SLOW_FACTOR times as long, and at least MIN_SLOWER_S
-- longer.
local SLOW_FACTOR, MIN_SLOWER_S = 3, 0.02
local MAX_COMPARED = 16 -- maximum number of workers with which a worker is compared
local SLOW_WAIT_MS = 1000 -- time that a waiting job is left to faster workers
local MOVE_INTERVAL_MS = 500
local MODEL_WAIT_MS = 30000 -- time that an output waits for a worker with its model
local MAX_SKIPPED = 64 -- maximum number of jobs that one call passes over: parked, expired, or of another model
local worker, model, lease, hang = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local is_overflow, weights, model_changed = ARGV[5] == '1', ARGV[6], ARGV[7]
local FIRST_NONCE = 8
local num_nonces = #ARGV - FIRST_NONCE + 1
local slots = key('inflight', worker)
redis.call('ZADD', PREFIX .. 'workers', now + lease, worker)

local assigned, images, sent = {}, {}, {}
local function add_to_reply(id, assignment, length)
  local payload, digests, ends, trace =
    unpack(redis.call('HMGET', key('job', id), 'payload', 'digests', 'ends', 'trace'))
  if not payload then return end
  for _, digest in ipairs(split(digests)) do
    local bytes = not sent[digest] and redis.call('GET', key('blob', digest))
    if bytes then
      images[#images + 1] = digest
      images[#images + 1] = bytes
      sent[digest] = true
    end
  end
  local log = redis.call('LRANGE', key('log', id), 0, -1)
  assigned[#assigned + 1] = {id, assignment, length, payload, log, tonumber(ends), trace or ''}
end

local nonces = {}
for i = FIRST_NONCE, #ARGV do nonces[ARGV[i]] = true end
local held = redis.call('HGETALL', slots)
for i = 1, #held, 2 do
  local assignment, _, length = unpack_slot(held[i + 1])
  if nonces[assignment] then add_to_reply(held[i], assignment, length) end
end
if #assigned > 0 then return {assigned, images, now} end

-- Returns whether a part of the job's output was generated with other weights or settings than this worker has.
local function has_other_model(id)
  local generated_with = redis.call('HGET', key('job', id), 'weights')
  if not generated_with or generated_with == '' or generated_with == weights then return false end
  return redis.call('EXISTS', key('log', id)) == 1
end

local passed_over = {} -- {queue, score, job}...

-- Leaves a job with another model to a worker that has this model. If there has been none for MODEL_WAIT_MS, the job
-- ends with an error and can be submitted again.
local function pass_over(id, queue, score)
  local job = key('job', id)
  local generated_with, queued_at, controller, cost =
    unpack(redis.call('HMGET', job, 'weights', 'queued_at', 'controller', 'cost'))
  local is_served = redis.call('ZSCORE', key('digests', model), generated_with)
  if is_served or now - tonumber(queued_at or now) < MODEL_WAIT_MS then
    passed_over[#passed_over + 1] = {queue, score, id}
    return
  end
  subtract_backlog(model, id, cost)
  notify(controller, {id .. ' ' .. append_frame(id, model_changed), model_changed})
  end_job(id, 'done')
  redis.call('HSET', job, 'repeatable', 1)
end

local function assign(id, assignment, queue, score)
  local job = key('job', id)
  delete_if_damaged(id)
  if has_other_model(id) then return pass_over(id, queue, score) end
  local controller, length, digests, cost = unpack(redis.call('HMGET', job, 'controller', 'length', 'digests', 'cost'))
  subtract_backlog(model, id, cost or 0)
  if not digests then return end -- expired in the queue
  if #missing_images(digests) > 0 then
    redis.call('HSET', job, 'state', 'parked')
    return request_resync(controller, id)
  end
  redis.call('HSET', job, 'state', 'running', 'assignment', assignment, 'worker', worker, 'weights', weights)
  redis.call('HSET', slots, id, pack_slot(assignment, controller, length, 0))
  extend(slots, redis.call('PTTL', job))
  add_to_reply(id, assignment, tonumber(length))
end

-- Returns whether the first quarantined job has waited long enough that a busy worker must finish its jobs for it.
local function must_drain()
  local first = redis.call('ZRANGE', key(QUARANTINE, model), 0, 0)[1]
  if not first or has_other_model(first) then return false end
  return now - (redis.call('HGET', key('job', first), 'queued_at') or 0) >= DRAIN_AFTER_MS
end

-- Assigns a quarantined job if possible. Returns true if this call must not assign any other job to the worker.
local function serve_quarantine()
  if #held == 2 and tonumber(redis.call('HGET', key('job', held[1]), 'doubts') or 0) >= QUARANTINE_CRASHES then
    return true
  end
  local draining_worker = key('ward', model)
  if num_queued(model) > 0 and redis.call('EXISTS', key('trial', model)) == 1 then return false end
  while #held == 0 and #passed_over == 0 do
    local first = redis.call('ZPOPMIN', key(QUARANTINE, model))
    if #first == 0 then return false end
    assign(first[1], ARGV[FIRST_NONCE], key(QUARANTINE, model), first[2])
    if #assigned > 0 then
      redis.call('DEL', draining_worker)
      pause_quarantine(model)
      return true
    end
  end
  if not must_drain() then return false end
  redis.call('SET', draining_worker, worker, 'PX', lease, 'NX')
  if redis.call('GET', draining_worker) ~= worker then return false end
  redis.call('PEXPIRE', draining_worker, lease)
  return true
end

local function promote_aged()
  local virtual = string.format('%.17g', virtual_time(model))
  for _, name in ipairs({QUEUES[2], QUEUES[3]}) do
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', key(name, model), '-inf', virtual, 'LIMIT', 0, MAX_PROMOTED)) do
      local since = redis.call('ZSCORE', key('since', model), id)
      if since and now - since >= PROMOTE_MS then
        local score = redis.call('ZSCORE', key(name, model), id)
        redis.call('ZREM', key(name, model), id)
        redis.call('ZADD', key(QUEUES[1], model), score, id)
        extend(key(QUEUES[1], model), redis.call('PTTL', key('backlog', model)))
        redis.call('ZREM', key('since', model), id)
      end
    end
  end
end

local function pop_first()
  for _, name in ipairs(QUEUES) do
    local first = redis.call('ZPOPMIN', key(name, model))
    if #first > 0 then return {first[1], first[2], key(name, model)} end
  end
end

-- The returned score is 0, because a job served out of order must not advance virtual time.
local function pop_overflow()
  local id, queue = find_overflow(model, held)
  if not id then return nil end
  local score = redis.call('ZSCORE', queue, id)
  redis.call('ZREM', queue, id)
  return {id, 0, queue, score}
end

local function is_slow(step, other_step)
  return step > SLOW_FACTOR * other_step and step - other_step > MIN_SLOWER_S
end

-- Returns up to MAX_COMPARED live workers of this model, and the times of their engine steps, as {worker, time}... The
-- command is 'ZRANGE' for the fastest workers or 'ZREVRANGE' for the slowest ones.
local function read_speeds(command)
  local workers, steps = {}, key('steps', model)
  local flat = redis.call(command, steps, 0, MAX_COMPARED - 1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    if tonumber(redis.call('ZSCORE', PREFIX .. 'workers', flat[i]) or 0) > now then
      workers[#workers + 1] = {flat[i], tonumber(flat[i + 1])}
    else
      redis.call('ZREM', steps, flat[i])
    end
  end
  return workers
end

local function has_free_slot(other)
  local packed = redis.call('GET', key('heartbeat', other))
  local heartbeat = packed and cmsgpack.unpack(packed)
  return heartbeat and heartbeat.model == model and redis.call('HLEN', key('inflight', other)) < heartbeat.capacity
end

-- Returns whether this worker is slow and must leave the first waiting job to a faster worker that has a free slot.
local function leaves_jobs_to_faster_workers(own_step)
  local has_faster = false
  for _, other in ipairs(read_speeds('ZRANGE')) do
    if not is_slow(own_step, other[2]) then break end
    has_faster = has_faster or has_free_slot(other[1])
  end
  if not has_faster then return false end
  for _, name in ipairs(QUEUES) do
    local first = redis.call('ZRANGE', key(name, model), 0, 0)[1]
    if first then return now - (redis.call('HGET', key('job', first), 'queued_at') or 0) < SLOW_WAIT_MS end
  end
  return false
end

-- Moves one job from a slow worker to this worker, which has found no waiting job.
local function take_over_from_slow_worker(own_step)
  for _, other in ipairs(read_speeds('ZREVRANGE')) do
    local has_jobs_to_move = own_step > 0 and is_slow(other[2], own_step)
    for _, id in ipairs(has_jobs_to_move and redis.call('HKEYS', key('inflight', other[1])) or {}) do
      local moved, doubts = unpack(redis.call('HMGET', key('job', id), 'moved', 'doubts'))
      if not moved and tonumber(doubts or QUARANTINE_CRASHES) < QUARANTINE_CRASHES and not has_other_model(id) then
        if not redis.call('SET', key('moved', model), '1', 'PX', MOVE_INTERVAL_MS, 'NX') then return end
        redis.call('HSET', key('job', id), 'moved', '1')
        requeue(id, fence(id) or redis.call('HGET', key('job', id), 'length'))
        local name = queue_with(id, model)
        if not name then return end -- the job was damaged
        local queue = key(name, model)
        local score = redis.call('ZSCORE', queue, id)
        redis.call('ZREM', queue, id)
        return assign(id, ARGV[FIRST_NONCE], queue, score)
      end
    end
  end
end

local is_reserved = serve_quarantine()
if not is_reserved then promote_aged() end
local own_step = tonumber(redis.call('ZSCORE', key('steps', model), worker) or 0)
local is_leaving = not is_reserved and own_step > 0 and leaves_jobs_to_faster_workers(own_step)
local virtual = virtual_time(model)
local last = virtual
for _ = 1, num_nonces + MAX_SKIPPED do
  if is_reserved or is_leaving or #assigned == num_nonces then break end
  local first = is_overflow and pop_overflow() or not is_overflow and pop_first()
  if not first then break end
  local num_assigned = #assigned
  assign(first[1], ARGV[FIRST_NONCE + #assigned], first[3], first[4] or first[2])
  if #assigned > num_assigned then last = math.max(last, tonumber(first[2])) end
end
if last > virtual then
  set_virtual_time(model, last)
  redis.call('ZREMRANGEBYSCORE', key('fair', model), '-inf', last) -- these tenants restart at the current virtual time
end
local is_idle = #assigned == 0 and #held == 0 and not is_reserved and not is_overflow
if is_idle and num_queued(model) == 0 then take_over_from_slow_worker(own_step) end
if #assigned > 0 and #held == 0 then redis.call('ZADD', PREFIX .. 'progress', now + hang, worker) end
local num_passed_over = 0
for _, each in ipairs(passed_over) do
  redis.call('ZADD', each[1], each[2], each[3])
  extend(each[1], redis.call('PTTL', key('backlog', model)))
  if each[1] ~= key(QUARANTINE, model) then num_passed_over = num_passed_over + 1 end
end
-- A worker must not be woken for jobs that it cannot accept. An overflow pull has not consumed a wake-up.
if not is_reserved and not is_overflow and num_queued(model) > num_passed_over then wake(model) end
return {assigned, images, now}
