-- key_add: put an API key on the ring, or replace what is known of it.
-- ARGV: digest, packed ApiKey
local ring = PREFIX .. 'keys'
redis.call('HSET', ring, ARGV[1], ARGV[2])
redis.call('HSET', ring, 'version', now .. ':' .. redis.call('HINCRBY', ring, 'changes', 1))
