-- resync: make Redis agree with what a job's controller has delivered; the answer to every doubt about a job.
-- Unknown job (Redis lost it): made anew, as if it came now. Log equal to the delivered frames or longer: adopted, the tail
-- is the answer. Log shorter or different: the writer is fenced, the log set to what was delivered, the job queued
-- again at its place. A job that another controller has taken over since, or that was cancelled, stays so.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, digests, priority, nonce, outline, trace, owner, length, frame...
-- Answer: {state, {missing digest...}, {frame...}, id of the last entry in the controller's stream}
local id, controller, model, cost = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local digests, owner, length = ARGV[8], tonumber(ARGV[13]), ARGV[14]
local job, log = key('job', id), key('log', id)
local state, old_owner, score, crashes, doubts =
  unpack(redis.call('HMGET', job, 'state', 'owner', 'score', 'crashes', 'doubts'))
see_controller(controller)

local function tail_of_log()
  local frames = redis.call('LRANGE', log, 0, -1)
  for i = 15, #ARGV do
    if frames[i - 14] ~= ARGV[i] then return nil end
  end
  local tail = {}
  for i = #ARGV - 13, #frames do tail[#tail + 1] = frames[i] end
  return tail
end

local function last_entry() -- what stands in the stream up to here is in the answer, or void
  local entry = redis.call('XREVRANGE', key('out', controller), '+', '-', 'COUNT', 1)[1]
  return entry and entry[1] or '0-0'
end

local function absent() -- pixels that must be sent before the job can run
  local missing = missing_blobs(digests)
  if #missing > 0 then
    redis.call('HSET', job, 'state', 'parked')
    leave_room(id, model, cost)
  end
  return missing
end

if state then
  if tonumber(old_owner) > owner then return {'moved', {}, {}, '0-0'} end
  if state == 'cancelled' then return {'cancelled', {}, {}, '0-0'} end
  local tail = tail_of_log()
  if tail and (state ~= 'done' or #tail > 0) and state ~= 'orphaned' then
    redis.call('HSET', job, 'owner', owner, 'nonce', ARGV[10])
    if state ~= 'done' then own(id, controller) end
    local missing = state == 'parked' and absent() or {}
    if state == 'parked' and #missing == 0 then put_back(id, redis.call('HGET', job, 'length')) end
    return {state, missing, tail, last_entry()}
  end
  fence(id)
  redis.call('SREM', key('live', redis.call('HGET', job, 'controller')), id)
end

redis.call('DEL', log)
make_job(score or arrival(model), crashes or 0, doubts or 0, owner)
for i = 15, #ARGV do append(id, ARGV[i]) end
put_back(id, length)
return {'queued', absent(), {}, last_entry()}
