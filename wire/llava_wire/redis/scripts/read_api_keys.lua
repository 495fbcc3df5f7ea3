-- read_api_keys: return all API keys, unless the caller already has the current version. Read-only. Versions are random
-- strings, so that they are not reused if Redis loses its data and keys are added again.
-- ARGV: the caller's version   Reply: {version, packed ApiKey...}, or nil if the caller's version is current
-- Uses shared/base.lua: PREFIX.
local keys = PREFIX .. 'keys'
local version = redis.call('HGET', keys, 'version') or '-'
if version == ARGV[1] then return nil end
local reply, entries = {version}, redis.call('HGETALL', keys)
for i = 1, #entries, 2 do
  if #entries[i] == 64 then reply[#reply + 1] = entries[i + 1] end
end
return reply
