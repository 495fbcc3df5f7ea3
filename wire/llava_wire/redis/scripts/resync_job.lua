-- resync_job: make Redis consistent with the frames that a job's controller has delivered. A job that Redis has lost
-- is recreated as a new arrival. If the log starts with the delivered frames, it is retained, and the reply contains
-- the additional frames. If it does not, or if the job runs on no worker, the writer is fenced, the log is replaced
-- with the delivered frames, and the job is requeued at its previous position. A job that waits in no queue is also
-- requeued. A job that was cancelled or taken over by another controller is not changed.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, digests, priority, nonce, outline, trace, log_bytes,
--   is_background, owner, length, digest of the model, frame...
-- Reply: {state, {missing digest...}, {frame...}, ID of the last entry in the controller's stream}
-- Uses shared/base.lua: key, PREFIX, unpack_slot, touch_controller; shared/images.lua: missing_images;
--   shared/fair_queue.lua: dequeue, requeue, arrival_time; shared/jobs.lua: queue_with,
--   remove_from_slots, change_owner, fence, create_job, append_frame.
local FIRST_FRAME = 18
local id, controller, model, cost = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local digests, owner, length = ARGV[8], tonumber(ARGV[15]), ARGV[16]
local job, log = key('job', id), key('log', id)
delete_if_damaged(id)
local state, old_owner, score, crashes, doubts =
  unpack(redis.call('HMGET', job, 'state', 'owner', 'score', 'crashes', 'doubts'))
touch_controller(controller)

-- Returns whether the job runs on no worker although its state is 'running', because the worker's slot was lost.
local function is_stranded()
  local worker, assignment = unpack(redis.call('HMGET', job, 'worker', 'assignment'))
  local is_worker_known = worker and redis.call('ZSCORE', PREFIX .. 'workers', worker)
  return not is_worker_known or unpack_slot(redis.call('HGET', key('inflight', worker), id)) ~= assignment
end

local function tail_of_log()
  local frames = redis.call('LRANGE', log, 0, -1)
  for i = FIRST_FRAME, #ARGV do
    if frames[i - FIRST_FRAME + 1] ~= ARGV[i] then return nil end
  end
  local tail = {}
  for i = #ARGV - FIRST_FRAME + 2, #frames do tail[#tail + 1] = frames[i] end
  return tail
end

-- Returns the ID of the last stream entry. Entries up to and including this one are either covered by the reply or
-- obsolete.
local function last_entry()
  local entry = redis.call('XREVRANGE', key('out', controller), '+', '-', 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end

-- Parks the job if any of its images are missing. Returns the digests of the missing images.
local function park_without_images()
  local missing = missing_images(digests)
  if #missing > 0 then
    redis.call('HSET', job, 'state', 'parked')
    dequeue(id, model, cost)
  end
  return missing
end

if state then
  if tonumber(old_owner) > owner then return {'moved', {}, {}, '0-0'} end
  if state == 'cancelled' then return {'cancelled', {}, {}, '0-0'} end
  local tail = tail_of_log()
  if state == 'running' and is_stranded() then tail = nil end
  if tail and (state ~= 'done' or #tail > 0) and state ~= 'orphaned' then
    redis.call('HSET', job, 'owner', owner, 'nonce', ARGV[10])
    if state ~= 'done' then change_owner(id, controller) end
    local missing = state == 'parked' and park_without_images() or {}
    local has_lost_place = state == 'queued' and not queue_with(id, model)
    if has_lost_place or (state == 'parked' and #missing == 0) then requeue(id, redis.call('HGET', job, 'length')) end
    return {state, missing, tail, last_entry()}
  end
  fence(id)
  redis.call('SREM', key('live', redis.call('HGET', job, 'controller')), id)
else
  remove_from_slots(id)
end

redis.call('DEL', log)
create_job(score or arrival_time(model), crashes or 0, doubts or 0, owner)
redis.call('HSET', job, 'weights', ARGV[17])
for i = FIRST_FRAME, #ARGV do append_frame(id, ARGV[i]) end
requeue(id, length)
return {'queued', park_without_images(), {}, last_entry()}
