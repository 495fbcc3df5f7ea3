-- files: store uploaded files and the output files of batches. A file is first reserved, then written in parts, and finally
-- sealed, which makes it visible. An upload that is not sealed expires after UPLOAD_MS. Every step can be repeated. A
-- file counts toward the limits as soon as it is reserved.
-- ARGV: step, file, tenant, then the arguments of the step:
--   reserve: size, payload, max_files, max_tenant_bytes, max_bytes (all 0: unlimited)
--                          Reply: {'ok'} or {'files' | 'tenant' | 'all', current usage, limit}
--   write: offset, bytes   Reply: 1 if the file still exists, else 0
--   seal: ttl_ms           Reply: same as for write
--   read                   Reply: {payload, size, expiry time} or {}
--   part: first, last      Reply: the bytes in this range, or nil if the file does not exist
--   list                   Reply: {{payload, size, expiry time}...}   (the file argument is unused)
--   remove                 Reply: 1 if the file existed, else 0
-- Uses shared/base.lua: key, now; shared/budget.lua: budget.
local step, id, tenant = ARGV[1], ARGV[2], ARGV[3]
local UPLOAD_MS = 600000
local file, bytes = key('file', id), key('bytes', id)
local space = budget('file', tenant)

local function set_ttl(ttl, size)
  redis.call('PEXPIRE', file, ttl)
  redis.call('PEXPIRE', bytes, ttl)
  space.add(id, size, ttl)
end

local function is_own() return redis.call('HGET', file, 'tenant') == tenant end

local function describe(name)
  local payload, size, ends = unpack(redis.call('HMGET', name, 'payload', 'size', 'ends'))
  if ends then return {payload, tonumber(size), tonumber(ends)} end
end

-- Returns the number of files of the tenant. The budget also counts batches, with IDs that start with 'batch:'.
local function count_files()
  local count = 0
  for _, entry in ipairs(redis.call('ZRANGE', space.entries, 0, -1)) do
    if not string.match(entry, '^batch:') then count = count + 1 end
  end
  return count
end

local steps = {}

function steps.reserve()
  local size, max_files = tonumber(ARGV[4]), tonumber(ARGV[6])
  local max_tenant_bytes, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8])
  if redis.call('EXISTS', file) == 1 then return {'ok'} end
  if max_files > 0 then
    local scope, used, limit = space.exceeded(size, max_tenant_bytes, max_bytes)
    local num_files = count_files()
    if num_files >= max_files then return {'files', num_files, max_files} end
    if scope then return {scope, used, limit} end
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
  for _, entry in ipairs(redis.call('ZRANGE', space.entries, 0, -1)) do
    reply[#reply + 1] = describe(key('file', string.match(entry, '^%S+')))
  end
  return reply
end

function steps.remove()
  if not is_own() then return 0 end
  space.remove(id, redis.call('HGET', file, 'size'))
  return redis.call('DEL', file, bytes) > 0 and 1 or 0
end

return steps[step]()
