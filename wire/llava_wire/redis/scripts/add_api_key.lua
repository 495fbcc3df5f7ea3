-- add_api_key: add an API key, or replace its stored data.
-- ARGV: digest, packed ApiKey, new version (a random string)
-- Uses shared/base.lua: PREFIX.
local keys = PREFIX .. 'keys'
redis.call('HSET', keys, ARGV[1], ARGV[2], 'version', ARGV[3])
