-- key_add: put an API key on the ring, or replace what is known of it.
-- ARGV: digest, packed ApiKey, new version of the ring: a random word
local ring = PREFIX .. 'keys'
redis.call('HSET', ring, ARGV[1], ARGV[2], 'version', ARGV[3])
