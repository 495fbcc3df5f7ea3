-- key_add: put an API key on the ring, or replace what is known of it.
-- ARGV: digest, packed ApiKey
local ring = PREFIX .. 'keys'
redis.call('HSET', ring, ARGV[1], ARGV[2])
local change = redis.call('HINCRBY', ring, 'changes', 1)
redis.call('HSET', ring, 'version', now .. ':' .. change .. ':' .. redis.sha1hex(ARGV[1] .. ARGV[2]))
