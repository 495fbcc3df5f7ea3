-- resync: make Redis agree with what a job's controller has delivered. An unknown job (Redis lost it) is created again,
-- as if it came now. A log that equals or continues the delivered frames is adopted; the reply has its tail. With a
-- shorter or different log the writer is fenced, the log is set to what was delivered and the job is requeued at its
-- position. A job that another controller has taken over since, or that was cancelled, stays so.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, digests, priority, nonce, outline, trace, owner, length,
--   frame...
-- Reply: {state, {missing digest...}, {frame...}, ID of the last entry in the controller's stream}
local id, controller, model, cost = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local digests, owner, length = ARGV[8], tonumber(ARGV[13]), ARGV[14]
local job, log = key('job', id), key('log', id)
local state, old_owner, score, crashes, doubts =
  unpack(redis.call('HMGET', job, 'state', 'owner', 'score', 'crashes', 'doubts'))
touch_controller(controller)

local function tail_of_log()
  local frames = redis.call('LRANGE', log, 0, -1)
  for i = 15, #ARGV do
    if frames[i - 14] ~= ARGV[i] then return nil end
  end
  local tail = {}
  for i = #ARGV - 13, #frames do tail[#tail + 1] = frames[i] end
  return tail
end

local function last_entry() -- entries of the stream up to this one are in the reply, or void
  local entry = redis.call('XREVRANGE', key('out', controller), '+', '-', 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end

local function park_without_images() -- the images that must be sent before the job can run
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
  if tail and (state ~= 'done' or #tail > 0) and state ~= 'orphaned' then
    redis.call('HSET', job, 'owner', owner, 'nonce', ARGV[10])
    if state ~= 'done' then change_owner(id, controller) end
    local missing = state == 'parked' and park_without_images() or {}
    if state == 'parked' and #missing == 0 then requeue(id, redis.call('HGET', job, 'length')) end
    return {state, missing, tail, last_entry()}
  end
  fence(id)
  redis.call('SREM', key('live', redis.call('HGET', job, 'controller')), id)
end

redis.call('DEL', log)
create_job(score or arrival_time(model), crashes or 0, doubts or 0, owner)
for i = 15, #ARGV do append_frame(id, ARGV[i]) end
requeue(id, length)
return {'queued', park_without_images(), {}, last_entry()}
