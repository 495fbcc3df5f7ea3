-- Operations on jobs other than queueing: creation, ownership, logging, fencing and completion.
-- Uses shared/base.lua: PREFIX, key, unpack_slot, split, KEEP_MS, extend, now, pack_slot; shared/images.lua:
--   use_images; shared/budget.lua: budget; shared/tenant_load.lua: add_tenant_job, remove_tenant_job;
--   shared/fair_queue.lua: QUARANTINE, QUEUES, count_served, dequeue.
--
-- The budget 'job' counts the memory of each job with its log. An unfinished job counts with the largest size that its log
-- can reach (`log_bytes`), so that `emit` does not have to count. A finished job counts with its actual size.
local JOB_OVERHEAD = 4096 -- memory of a job's fields, index entries and queue entries
local ENDED_OVERHEAD = 512 -- memory of an ended job's index entries
local DROPPABLE_MS = 30000 -- a finished job is not dropped before its controller has certainly read its last event
local MAX_DROPPED_JOBS = 64 -- maximum number of entries that one call examines to make room

-- Counts the job with `size` bytes until `ttl` ms from now.
local function count_job(id, tenant, size, ttl)
  local job = key('job', id)
  local space, counted = budget('job', tenant), redis.call('HGET', job, 'bytes')
  if counted then space.remove(id, counted) end
  redis.call('HSET', job, 'bytes', size)
  space.add(id, size, ttl)
end

-- Returns the memory used by the job. `overhead` is the memory of its entries elsewhere.
local function job_size(id, overhead)
  local size = overhead
  for _, kind in ipairs({'job', 'log'}) do
    size = size + (redis.call('MEMORY', 'USAGE', key(kind, id), 'SAMPLES', 0) or 0)
  end
  return size
end

-- Deletes a job that no longer runs, and its log.
local function drop_job(id, space)
  local counted = redis.call('HGET', key('job', id), 'bytes')
  if counted then space.remove(id, counted) end
  redis.call('DEL', key('job', id), key('log', id))
end

-- Deletes a finished job and returns true, unless its controller or client may not have read the output yet: if it
-- has just ended, or is a background job. Also discounts an entry whose job was lost.
local function drop_finished(space, id, counted)
  local state, is_background, owner, bytes =
    unpack(redis.call('HMGET', key('job', id), 'state', 'background', 'tenant', 'bytes'))
  if bytes ~= counted then
    space.remove(id, counted)
    return true
  end
  if is_background == '1' or (state ~= 'done' and state ~= 'cancelled') then return false end
  if redis.call('PTTL', key('job', id)) > KEEP_MS - DROPPABLE_MS then return false end
  drop_job(id, budget('job', owner))
  return true
end

-- Drops finished jobs in order of expiry, first those of the tenant, until the tenant may store `size` more bytes.
-- Returns nil on success. Otherwise, returns the same values as `exceeded` in shared/budget.lua.
local function make_room_for_job(tenant, size, max_bytes)
  local space = budget('job', tenant)
  if not space.exceeded(size, max_bytes, max_bytes) then return nil end
  for _, entries in ipairs({space.entries, space.all_entries}) do
    for _, entry in ipairs(redis.call('ZRANGE', entries, 0, MAX_DROPPED_JOBS - 1)) do
      local is_dropped = drop_finished(space, string.match(entry, '^(%S+) (%d+)$'))
      if is_dropped and not space.exceeded(size, max_bytes, max_bytes) then return nil end
    end
  end
  return space.exceeded(size, max_bytes, max_bytes)
end

-- Returns the queue in which the job waits, or nil if it waits in none.
local function queue_with(id, model)
  for _, name in ipairs({QUARANTINE, unpack(QUEUES)}) do
    if redis.call('ZSCORE', key(name, model), id) then return name end
  end
end

-- Removes a job from the slots of all workers. Needed only if the job's hash, which names the worker, was lost.
local function remove_from_slots(id)
  for _, worker in ipairs(redis.call('ZRANGE', PREFIX .. 'workers', 0, -1)) do
    redis.call('HDEL', key('inflight', worker), id)
  end
end

-- Returns whether the job's current assignment is the given one. Every script that revokes an assignment also changes
-- the job's state or its `assignment` field. If this function returns true but the worker has no slot for the job,
-- the slot was therefore lost.
local function is_assigned(id, worker, assignment)
  local state, holder, current = unpack(redis.call('HMGET', key('job', id), 'state', 'worker', 'assignment'))
  return state == 'running' and holder == worker and current == assignment
end

-- Restores a slot that was lost, and returns it. `length` and `frame` are those that the worker has reached.
local function restore_slot(worker, id, assignment, length, frame)
  local job, slots = key('job', id), key('inflight', worker)
  local slot = pack_slot(assignment, redis.call('HGET', job, 'controller'), length, frame)
  redis.call('HSET', slots, id, slot)
  extend(slots, redis.call('PTTL', job))
  return slot
end

-- Appends a frame to the job's log and returns its index. Frames are written atomically and never change.
local function append_frame(id, payload)
  local name = key('log', id)
  local index = redis.call('RPUSH', name, payload) - 1
  if index == 0 then redis.call('PEXPIRE', name, math.max(redis.call('PTTL', key('job', id)), 1)) end
  return index
end

-- Revokes the job's assignment, so that the worker's next emit for the job is rejected. If the job was running, returns
-- the length of its log in tokens.
local function fence(id)
  local worker = redis.call('HGET', key('job', id), 'worker')
  if not worker or worker == '' then return nil end
  local _, _, length = unpack_slot(redis.call('HGET', key('inflight', worker), id))
  redis.call('HDEL', key('inflight', worker), id)
  return length
end

local function end_job(id, state)
  local job = key('job', id)
  local model, tenant, controller, digests, cost =
    unpack(redis.call('HMGET', job, 'model', 'tenant', 'controller', 'digests', 'cost'))
  if not model then return end -- expired
  redis.call('HSET', job, 'state', state)
  if state == 'done' then count_served(model, cost or 0) end
  for _, digest in ipairs(split(digests or '')) do redis.call('SREM', key('users', digest), id) end
  if state ~= 'orphaned' then redis.call('HDEL', job, 'payload', 'digests') end -- an orphan can be taken over
  dequeue(id, model, cost or 0)
  if tenant then remove_tenant_job(tenant, id) end
  if controller then redis.call('SREM', key('live', controller), id) end
  redis.call('PEXPIRE', job, KEEP_MS)
  redis.call('PEXPIRE', key('log', id), KEEP_MS)
  if tenant then count_job(id, tenant, job_size(id, ENDED_OVERHEAD), KEEP_MS) end
end

-- Adds the job to the live jobs of its tenant and its controller.
local function register_live(id, tenant, controller, cost, ttl)
  add_tenant_job(tenant, id, cost, ttl)
  redis.call('SADD', key('live', controller), id)
  extend(key('live', controller), ttl)
end

-- Returns the number of bytes with which a new job counts. Uses the same arguments as `create_job`.
local function new_job_size() return #ARGV[6] + #ARGV[8] + #ARGV[11] + ARGV[13] + JOB_OVERHEAD end

-- Stores everything about a job except its position in the queue. Uses the first 14 arguments of `submit` and
-- `resync_job`: job, controller, tenant, model, cost, payload, ttl_ms (without KEEP_MS), digests, priority, nonce,
-- outline, trace, log_bytes, is_background (0 or 1). `owner` is the epoch, which increases with each takeover. `crashes` counts all worker crashes that
-- occurred while the job was running; `doubts` counts only those since the job was last cleared.
local function create_job(score, crashes, doubts, owner)
  local id, controller, tenant, model, cost, payload, ttl, digests, priority, nonce, outline = unpack(ARGV, 1, 11)
  local job, life = key('job', id), tonumber(ttl) + KEEP_MS
  redis.call('HSET', job, 'state', 'queued', 'controller', controller, 'tenant', tenant, 'model', model, 'payload', payload,
    'digests', digests, 'print', redis.sha1hex(payload), 'ends', now + tonumber(ttl), 'score', score,
    'crashes', crashes, 'doubts', doubts, 'owner', owner, 'cost', cost, 'priority', priority, 'nonce', nonce,
    'outline', outline, 'log_bytes', ARGV[13], 'background', ARGV[14])
  if ARGV[12] ~= '' then redis.call('HSET', job, 'trace', ARGV[12]) end
  redis.call('PEXPIRE', job, life)
  use_images(id, tenant, digests, life)
  register_live(id, tenant, controller, cost, life)
  count_job(id, tenant, new_job_size(), life)
end

-- Routes all subsequent events of the job to `controller`.
local function change_owner(id, controller)
  local job = key('job', id)
  local old, worker, tenant, cost = unpack(redis.call('HMGET', job, 'controller', 'worker', 'tenant', 'cost'))
  redis.call('SREM', key('live', old), id)
  redis.call('HSET', job, 'controller', controller)
  register_live(id, tenant, controller, cost, redis.call('PTTL', job))
  if worker and worker ~= '' then
    local slots = key('inflight', worker)
    local assignment, _, length, frame = unpack_slot(redis.call('HGET', slots, id))
    if assignment then redis.call('HSET', slots, id, pack_slot(assignment, controller, length, frame)) end
  end
end
