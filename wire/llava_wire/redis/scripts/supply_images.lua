-- supply_images: store images resent for a parked job, and requeue the job once all of its images are stored.
-- ARGV: job, ttl_ms, (digest, bytes)...   Reply: the digests that are still missing
-- Uses shared/base.lua: key, KEEP_MS; shared/images.lua: store_images, missing_images; shared/fair_queue.lua:
--   requeue.
local id = ARGV[1]
local job = key('job', id)
local state, tenant, digests, length = unpack(redis.call('HMGET', job, 'state', 'tenant', 'digests', 'length'))
if not tenant then return {} end
store_images(tenant, 3, tonumber(ARGV[2]) + KEEP_MS)
if state ~= 'parked' then return {} end
local missing = missing_images(digests)
if #missing == 0 then requeue(id, length) end
return missing
