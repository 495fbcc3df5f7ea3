-- submit: add a job and its images to the queue for its model. If the queue is full, the tenant exceeds a limit, there
-- is not enough space for the images, or images are missing, nothing is written. If a limit is exceeded, the reply
-- includes the estimated time in milliseconds until a retry can succeed (0: unknown). A repeated call finds its nonce
-- and returns 'ok' without a position. If the job exists with another nonce, the reply is 'known', or 'duplicate' if
-- its contents differ. A job that was cancelled, or that ended because its model changed, can be submitted again.
-- `weight` is the tenant's share relative to other tenants.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, digests, priority, nonce, outline, trace, weight,
--   max_queued, max_queued_cost, max_tenant_jobs, max_tenant_cost, max_pixel_bytes, (digest, bytes)...
-- Reply: {'ok', number of waiting jobs, milliseconds until they are served (0: unknown)} or {reason, ...}
-- Uses shared/base.lua: key, KEEP_MS, touch_controller; shared/images.lua: discount_expired_images, PIXEL_BYTES,
--   PIXELS, discount_image, store_images, missing_images; shared/fair_queue.lua: service_rate, num_waiting,
--   fair_score, requeue; shared/jobs.lua: create_job.
local id, controller, tenant, model, cost, payload = unpack(ARGV, 1, 6)
local ttl, digests, priority, nonce = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9]), ARGV[10]
local max_queued, max_queued_cost = tonumber(ARGV[14]), tonumber(ARGV[15])
local max_tenant_jobs, max_tenant_cost, max_bytes = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[18])
cost = tonumber(cost)

-- Drops images that no live job uses, in order of expiry, until the new images fit. Returns nil on success. If the new
-- images still do not fit, returns the number of bytes in use.
local function make_room()
  local needed = 0
  for i = 19, #ARGV, 2 do
    if redis.call('EXISTS', key('blob', ARGV[i])) == 0 then needed = needed + #ARGV[i + 1] end
  end
  if needed == 0 then return nil end
  discount_expired_images()
  local used = tonumber(redis.call('GET', PIXEL_BYTES) or '0')
  if used + needed <= max_bytes then return nil end
  for _, entry in ipairs(redis.call('ZRANGE', PIXELS, 0, 1023)) do
    local digest, size = string.match(entry, '^(%S+) (%d+)$')
    if redis.call('SCARD', key('users', digest)) == 0 then
      discount_image(entry)
      redis.call('DEL', key('blob', digest))
      used = used - size
      if used + needed <= max_bytes then return nil end
    end
  end
  return used
end

-- Returns the time in milliseconds to serve `load` at the rate of the last minute, or 0 if the rate is unknown.
local function time_to_serve(load)
  local rate = service_rate(model)
  return rate and math.ceil(load * 1000 / rate) or 0
end

local function exceeded_limit()
  local waiting, backlog = num_waiting(model), tonumber(redis.call('GET', key('backlog', model)) or '0')
  if waiting >= max_queued then return {'full', waiting, time_to_serve(backlog / waiting)} end
  if waiting > 0 and backlog + cost > max_queued_cost then
    return {'heavy', math.ceil(backlog), time_to_serve(backlog + cost - max_queued_cost)}
  end
  local num_jobs, load = 0, 0
  for _, job_cost in ipairs(redis.call('HVALS', key('tenant', tenant))) do
    num_jobs, load = num_jobs + 1, load + tonumber(job_cost)
  end
  if num_jobs >= max_tenant_jobs then return {'tenant', num_jobs, time_to_serve(load / num_jobs)} end
  if num_jobs > 0 and load + cost > max_tenant_cost then
    return {'tenant_cost', math.ceil(load), time_to_serve(load + cost - max_tenant_cost)}
  end
  local used = make_room()
  return used and {'bytes', used, time_to_serve(cost)}
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
store_images(19, ttl + KEEP_MS)
local missing = missing_images(digests)
if #missing > 0 then return {'pixels', missing} end

-- Call DEL only if needed: Redis checks for out-of-memory only before the first write of a script.
if known then redis.call('DEL', key('job', id), key('log', id)) end
create_job(fair_score(model, tenant, priority, cost / tonumber(ARGV[13])), 0, 0, 1)
touch_controller(controller)
requeue(id, 0)
return position
