-- key_remove: take an API key off the ring.
-- ARGV: digest, new version of the ring: a random word   Answer: 1 if it was there
local ring = PREFIX .. 'keys'
if #ARGV[1] ~= 64 or redis.call('HDEL', ring, ARGV[1]) == 0 then return 0 end
redis.call('HSET', ring, 'version', ARGV[2])
return 1
