-- remove_api_key: remove an API key.
-- ARGV: digest, new version (a random string)   Reply: 1 if the key existed, else 0
-- Uses shared/base.lua: PREFIX.
local keys = PREFIX .. 'keys'
if #ARGV[1] ~= 64 or redis.call('HDEL', keys, ARGV[1]) == 0 then return 0 end
redis.call('HSET', keys, 'version', ARGV[2])
return 1
