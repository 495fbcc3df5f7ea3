-- supply_images: images sent again for a parked job, which is queued once they are complete.
-- ARGV: job, ttl_ms, (digest, bytes)...   Reply: the digests still missing
local id = ARGV[1]
local job = key('job', id)
store_images(3, tonumber(ARGV[2]) + KEEP_MS)
local state, digests, length = unpack(redis.call('HMGET', job, 'state', 'digests', 'length'))
if state ~= 'parked' then return {} end
local missing = missing_images(digests)
if #missing == 0 then requeue(id, length) end
return missing
