-- supply: pixels sent again for a parked job, which queues once they are complete. Answers the digests still missing.
-- ARGV: job, ttl_ms, (digest, bytes)...
local id = ARGV[1]
local job = key('job', id)
store_blobs(3, tonumber(ARGV[2]) + KEEP_MS)
local state, digests, length = unpack(redis.call('HMGET', job, 'state', 'digests', 'length'))
if state ~= 'parked' then return {} end
local missing = missing_blobs(digests)
if #missing == 0 then put_back(id, length) end
return missing
