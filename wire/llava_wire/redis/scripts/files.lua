-- files: store the input and output files of batches. A file is first reserved, then written in parts, and finally
-- sealed, which makes it visible. An upload that is not sealed expires after UPLOAD_MS. Every step can be repeated. A
-- file counts toward the limits as soon as it is reserved. `files` contains one entry 'file size' per file, ordered by
-- expiry time, and `file_bytes` is the sum of the sizes.
-- ARGV: step, file, tenant, then the arguments of the step:
--   reserve: size, payload, max_files, max_tenant_bytes, max_bytes (all 0: unlimited)
--                          Reply: {'ok'} or {exceeded limit, current usage}
--   write: offset, bytes   Reply: 1 if the file still exists, else 0
--   seal: ttl_ms           Reply: same as for write
--   read                   Reply: {payload, size, expiry time} or {}
--   part: first, last      Reply: the bytes in this range, or nil if the file does not exist
--   list                   Reply: {{payload, size, expiry time}...}   (the file argument is unused)
--   remove                 Reply: 1 if the file existed, else 0
-- Uses shared/base.lua: PREFIX, key, now, extend, repair_sum.
local step, id, tenant = ARGV[1], ARGV[2], ARGV[3]
local UPLOAD_MS = 600000
local ALL, ALL_BYTES, OWN = PREFIX .. 'files', PREFIX .. 'file_bytes', key('files', tenant)
local file, bytes = key('file', id), key('bytes', id)

local function discount(entry)
  if redis.call('ZREM', ALL, entry) == 1 then redis.call('DECRBY', ALL_BYTES, string.match(entry, ' (%d+)$')) end
end

local function discount_expired()
  repair_sum(ALL, ALL_BYTES)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', ALL, '-inf', now, 'LIMIT', 0, 256)) do discount(entry) end
  redis.call('ZREMRANGEBYSCORE', OWN, '-inf', now)
end

local function set_ttl(ttl, size)
  local entry = id .. ' ' .. size
  redis.call('PEXPIRE', file, ttl)
  redis.call('PEXPIRE', bytes, ttl)
  if redis.call('ZADD', ALL, now + ttl, entry) == 1 then redis.call('INCRBY', ALL_BYTES, size) end
  redis.call('ZADD', OWN, now + ttl, entry)
  extend(OWN, ttl)
end

local function is_own() return redis.call('HGET', file, 'tenant') == tenant end

local function describe(name)
  local payload, size, ends = unpack(redis.call('HMGET', name, 'payload', 'size', 'ends'))
  if ends then return {payload, tonumber(size), tonumber(ends)} end
end

local steps = {}

function steps.reserve()
  local size, max_files = tonumber(ARGV[4]), tonumber(ARGV[6])
  local max_tenant_bytes, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8])
  discount_expired()
  if redis.call('EXISTS', file) == 1 then return {'ok'} end
  if max_files > 0 then
    local own, held = redis.call('ZRANGE', OWN, 0, -1), 0
    for _, entry in ipairs(own) do held = held + tonumber(string.match(entry, ' (%d+)$')) end
    local all = tonumber(redis.call('GET', ALL_BYTES) or '0')
    if #own >= max_files then return {'files', #own} end
    if held + size > max_tenant_bytes then return {'tenant_bytes', held} end
    if all + size > max_bytes then return {'bytes', all} end
  end
  redis.call('HSET', file, 'tenant', tenant, 'payload', ARGV[5], 'size', size)
  redis.call('SET', bytes, '')
  set_ttl(UPLOAD_MS, size)
  return {'ok'}
end

function steps.write()
  if not is_own() then return 0 end
  redis.call('SETRANGE', bytes, ARGV[4], ARGV[5])
  return 1
end

function steps.seal()
  if not is_own() then return 0 end
  redis.call('HSET', file, 'ends', now + tonumber(ARGV[4]))
  set_ttl(tonumber(ARGV[4]), redis.call('HGET', file, 'size'))
  return 1
end

function steps.read() return is_own() and describe(file) or {} end

function steps.part()
  return is_own() and describe(file) and redis.call('GETRANGE', bytes, ARGV[4], ARGV[5])
end

function steps.list()
  local reply = {}
  for _, entry in ipairs(redis.call('ZRANGE', OWN, 0, -1)) do
    reply[#reply + 1] = describe(key('file', string.match(entry, '^%S+')))
  end
  return reply
end

function steps.remove()
  if not is_own() then return 0 end
  local entry = id .. ' ' .. redis.call('HGET', file, 'size')
  discount(entry)
  redis.call('ZREM', OWN, entry)
  return redis.call('DEL', file, bytes) > 0 and 1 or 0
end

return steps[step]()
