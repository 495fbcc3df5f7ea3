-- key_read: the whole ring, unless the reader knows it. Reads only.
-- ARGV: version that the reader has   Answer: {version, packed ApiKey...}, nil if that is still the ring's
-- Versions are random words: a Redis that lost its memory and was filled anew has none of the old ones.
local ring = PREFIX .. 'keys'
local version = redis.call('HGET', ring, 'version') or '-'
if version == ARGV[1] then return nil end
local answer, entries = {version}, redis.call('HGETALL', ring)
for i = 1, #entries, 2 do
  if #entries[i] == 64 then answer[#answer + 1] = entries[i + 1] end
end
return answer
