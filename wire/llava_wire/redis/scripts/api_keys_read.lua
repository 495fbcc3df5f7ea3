-- api_keys_read: all API keys, unless the reader has this version already. Reads only. Versions are random words, so a
-- Redis that lost its memory and was filled again has none of the old ones.
-- ARGV: version that the reader has   Reply: {version, packed ApiKey...}, nil if it is the present one
local keys = PREFIX .. 'keys'
local version = redis.call('HGET', keys, 'version') or '-'
if version == ARGV[1] then return nil end
local reply, entries = {version}, redis.call('HGETALL', keys)
for i = 1, #entries, 2 do
  if #entries[i] == 64 then reply[#reply + 1] = entries[i + 1] end
end
return reply
