-- submit: add a job and its images to the queue for its model. If the queue is full, the tenant exceeds a limit, there
-- is not enough space for the job or its images, or images are missing, no job is created. If a limit is exceeded, the
-- reply includes the estimated time in milliseconds until a retry can succeed (0: unknown). A repeated call finds its
-- nonce and returns 'ok' without a position. If the job exists with another nonce, the reply is 'known', or 'duplicate' if
-- its contents differ. A job that was cancelled, or that ended because its model changed, can be submitted again.
-- `weight` is the tenant's share relative to other tenants.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, digests, priority, nonce, outline, trace, log_bytes,
--   is_background, weight, max_queued, max_queued_cost, max_tenant_jobs, max_tenant_cost, max_pixel_bytes,
--   max_job_bytes, (digest, bytes)...
-- Reply: {'ok', number of waiting jobs, milliseconds until they are served (0: unknown)} or {reason, ...}
-- If there is no space, the reply is {'bytes', bytes in use, retry time, 'job' or 'pixel', 'all' or 'tenant', bytes
-- needed, limit}.
-- Uses shared/base.lua: key, KEEP_MS, touch_controller; shared/images.lua: make_room_for_images, store_images,
--   missing_images; shared/tenant_load.lua: tenant_load; shared/fair_queue.lua: service_rate, num_waiting, fair_score,
--   requeue; shared/jobs.lua: create_job, new_job_size, make_room_for_job, drop_job; shared/budget.lua: budget.
local FIRST_IMAGE = 22
local id, controller, tenant, model, cost, payload = unpack(ARGV, 1, 6)
local ttl, digests, priority, nonce = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9]), ARGV[10]
local max_queued, max_queued_cost = tonumber(ARGV[16]), tonumber(ARGV[17])
local max_tenant_jobs, max_tenant_cost = tonumber(ARGV[18]), tonumber(ARGV[19])
local max_pixel_bytes, max_job_bytes = tonumber(ARGV[20]), tonumber(ARGV[21])
cost = tonumber(cost)

-- Returns the time in milliseconds to serve `load` at the rate of the last minute, or 0 if the rate is unknown.
local function time_to_serve(load)
  local rate = service_rate(model)
  return rate and math.ceil(load * 1000 / rate) or 0
end

local function exceeded_budget()
  local scope, used, limit = make_room_for_job(tenant, new_job_size(), max_job_bytes)
  if scope then return {'bytes', used, time_to_serve(cost), 'job', scope, new_job_size(), limit} end
  local needed
  scope, used, limit, needed = make_room_for_images(tenant, digests, FIRST_IMAGE, max_pixel_bytes)
  return scope and {'bytes', used, time_to_serve(cost), 'pixel', scope, needed, limit}
end

local function exceeded_limit()
  local waiting, backlog = num_waiting(model), tonumber(redis.call('GET', key('backlog', model)) or '0')
  if waiting >= max_queued then return {'full', waiting, time_to_serve(backlog / waiting)} end
  if waiting > 0 and backlog + cost > max_queued_cost then
    return {'heavy', math.ceil(backlog), time_to_serve(backlog + cost - max_queued_cost)}
  end
  local num_jobs, load = tenant_load(tenant)
  if num_jobs >= max_tenant_jobs then return {'tenant', num_jobs, time_to_serve(load / num_jobs)} end
  if num_jobs > 0 and load + cost > max_tenant_cost then
    return {'tenant_cost', math.ceil(load), time_to_serve(load + cost - max_tenant_cost)}
  end
  return exceeded_budget()
end

local known, state, former_nonce, is_repeatable =
  unpack(redis.call('HMGET', key('job', id), 'print', 'state', 'nonce', 'repeatable'))
if known and former_nonce == nonce then return {'ok'} end
if known and state ~= 'cancelled' and not is_repeatable then
  return {known == redis.sha1hex(payload) and 'known' or 'duplicate'}
end
local exceeded = exceeded_limit()
if exceeded then return exceeded end
local num_ahead, backlog = num_waiting(model), tonumber(redis.call('GET', key('backlog', model)) or '0')
local position = {'ok', num_ahead, time_to_serve(backlog)}
store_images(tenant, FIRST_IMAGE, ttl + KEEP_MS)
local missing = missing_images(digests)
if #missing > 0 then return {'pixels', missing} end

-- Call DEL only if needed: Redis checks for out-of-memory only before the first write of a script.
if known then drop_job(id, budget('job', tenant)) end
create_job(fair_score(model, tenant, priority, cost / tonumber(ARGV[15])), 0, 0, 1)
touch_controller(controller)
requeue(id, 0)
return position
