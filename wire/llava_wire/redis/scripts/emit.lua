-- emit: append the frames of one engine step to the logs of their jobs, and record the worker's progress. Each frame is
-- appended atomically. A frame is accepted only if the writer holds the job (fencing), the frame number is the next
-- one, and the offset equals the length of the log. A frame with a lower number is from a repeated call and is skipped.
-- A gap means that the log has lost writes; the job is then requeued and resumed from the log. Each controller is
-- notified with a single XADD. If the worker's slot for a job was lost, it is restored. If the worker passes its model,
-- the reply indicates whether `pull` would return an overflow job.
-- ARGV: worker, lease_ms, hang_ms, model or '', (job, assignment, frame, offset, num_tokens, is_final, payload)...
-- Reply: {1 if an overflow job is waiting, else 0; {rejected job...}; number of workers that have recently held jobs}
-- Uses shared/base.lua: key, PREFIX, now, wake, pack_slot, unpack_slot, notify; shared/fair_queue.lua:
--   QUARANTINE_CRASHES, QUARANTINE, num_queued, pause_quarantine, requeue, find_overflow; shared/jobs.lua: append_frame, end_job,
--   is_assigned, restore_slot.
local CLEAR_FRAMES = 8 -- a quarantined job is cleared after running for this number of frames without a crash
local MAX_CLEAR_CRASHES = 6 -- a job with at least this number of crashes is never cleared
local worker, model = ARGV[1], ARGV[4]
local slots = key('inflight', worker)
redis.call('ZADD', PREFIX .. 'workers', now + tonumber(ARGV[2]), worker)
redis.call('ZADD', PREFIX .. 'progress', now + tonumber(ARGV[3]), worker)
local num_writers = redis.call('ZCARD', PREFIX .. 'progress')
if #ARGV == 4 then return {0, {}, num_writers} end

local held, refused, changed, released, outs = {}, {}, {}, {}, {}
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do held[flat[i]] = flat[i + 1] end

local function release(id)
  held[id] = nil
  changed[id] = nil
  released[#released + 1] = id
end

-- Clears a quarantined job, so that it no longer has to run alone. Returns true if the job must be requeued because
-- another job is waiting in quarantine and no other jobs are waiting.
local function clear(id)
  local job_model, crashes, doubts = unpack(redis.call('HMGET', key('job', id), 'model', 'crashes', 'doubts'))
  if tonumber(doubts or 0) < QUARANTINE_CRASHES or tonumber(crashes or 0) >= MAX_CLEAR_CRASHES then return false end
  redis.call('HSET', key('job', id), 'doubts', 0)
  wake(job_model)
  if num_queued(job_model) > 0 then
    pause_quarantine(job_model)
    return false
  end
  redis.call('DEL', key('trial', job_model))
  return redis.call('EXISTS', key(QUARANTINE, job_model)) == 1
end

local function write(id, assignment, controller, length, frame, count, final, payload)
  local out = outs[controller] or {}
  outs[controller] = out
  out[#out + 1] = id .. ' ' .. append_frame(id, payload)
  out[#out + 1] = payload
  if final == '1' then
    end_job(id, 'done')
    release(id)
  else
    held[id] = pack_slot(assignment, controller, length + count, frame)
    changed[id] = true
    if frame == CLEAR_FRAMES and clear(id) then
      requeue(id, length + count)
      release(id)
      refused[#refused + 1] = id
    end
  end
end

for i = 5, #ARGV, 7 do
  local id, assignment, frame = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local offset, count = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  if not held[id] and is_assigned(id, worker, assignment) then
    local is_repeated = redis.call('LINDEX', key('log', id), -1) == ARGV[i + 6]
    held[id] = is_repeated and restore_slot(worker, id, assignment, offset + count, frame)
      or restore_slot(worker, id, assignment, offset, frame - 1)
  end
  local holder, controller, length, last = unpack_slot(held[id])
  if holder ~= assignment then
    local state, writer = unpack(redis.call('HMGET', key('job', id), 'state', 'assignment'))
    if state ~= 'done' or writer ~= assignment then refused[#refused + 1] = id end -- else this is a repeated call
  elseif frame > last then
    if frame == last + 1 and offset == length then
      write(id, assignment, controller, length, frame, count, ARGV[i + 5], ARGV[i + 6])
    else
      requeue(id, length)
      release(id)
      refused[#refused + 1] = id
    end
  end
end

local fields = {}
for id in pairs(changed) do
  fields[#fields + 1] = id
  fields[#fields + 1] = held[id]
end
if #fields > 0 then redis.call('HSET', slots, unpack(fields)) end
if #released > 0 then redis.call('HDEL', slots, unpack(released)) end
for controller, out in pairs(outs) do notify(controller, out) end
local has_overflow = model ~= '' and find_overflow(model, redis.call('HGETALL', slots))
return {has_overflow and 1 or 0, refused, num_writers}
