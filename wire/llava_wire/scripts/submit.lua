-- submit: put one job into its model's waiting room, with the pixels it brings. A full room, a tenant over its
-- limit, too many bytes of pixels, and pixels that nobody has, are answered before anything of the job is written.
-- The same call sent twice finds the job and says 'ok'; the same id with other contents is a 'duplicate'.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, max_queued, max_tenant_jobs,
--   max_pixel_bytes, digests, (digest, bytes)...
local id, controller, tenant, model, cost, payload = unpack(ARGV, 1, 6)
local ttl, max_queued, max_tenant_jobs = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local max_bytes, digests = tonumber(ARGV[10]), ARGV[11]
local room = key('wait', model)

-- Drops pixels that no live job uses, soonest to expire first, until the new ones fit; nil, or the bytes in use.
local function make_room()
  local need = 0
  for i = 12, #ARGV, 2 do
    if redis.call('EXISTS', key('blob', ARGV[i])) == 0 then need = need + #ARGV[i + 1] end
  end
  if need == 0 then return nil end
  forget_expired_blobs()
  local used = tonumber(redis.call('GET', PIXEL_BYTES) or '0')
  if used + need <= max_bytes then return nil end
  for _, entry in ipairs(redis.call('ZRANGE', PIXELS, 0, 1023)) do
    local digest, size = string.match(entry, '^(%S+) (%d+)$')
    if redis.call('SCARD', key('users', digest)) == 0 then
      uncount(entry)
      redis.call('DEL', key('blob', digest))
      used = used - size
      if used + need <= max_bytes then return nil end
    end
  end
  return used
end

local known = redis.call('HGET', key('job', id), 'print')
if known then return {known == redis.sha1hex(payload) and 'ok' or 'duplicate'} end
local waiting = redis.call('ZCARD', room)
if waiting >= max_queued then return {'full', waiting} end
local held = redis.call('SCARD', key('tenant', tenant))
if held >= max_tenant_jobs then return {'tenant', held} end
local used = make_room()
if used then return {'bytes', used} end
store_blobs(12, ttl + KEEP_MS)
local missing = missing_blobs(digests)
if #missing > 0 then return {'pixels', missing} end

local score = fair_score(model, tenant, tonumber(cost))
make_job(id, controller, tenant, model, payload, digests, ttl, score, 0, 1)
see_controller(controller)
put_back(id, 0)
return {'ok'}
