-- What every script shares, put in front of each by the loader: the names of the keys and the moves of a job.
-- All times are Redis's own, in milliseconds. A job's hash outlives its deadline by KEEP_MS, so that a reader
-- who comes late still finds the end. `inflight:{worker}` holds, per job, assignment id (32) .. controller id
-- (32) .. log length in tokens .. ':' .. number of the last frame: one HGETALL is fence, route and gap check.
local PREFIX = '{lv}:'
local KEEP_MS = 300000
local OUT_MS = 600000
local FAIR_MS = 3600000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function key(kind, name) return PREFIX .. kind .. ':' .. name end

-- A key's life only grows here.
local function extend(name, ttl)
  if redis.call('PTTL', name) < ttl then redis.call('PEXPIRE', name, ttl) end
end

local function wake(model)
  local name = key('wake', model)
  redis.call('LPUSH', name, '1')
  redis.call('LTRIM', name, 0, 0) -- one token is enough: a pull that leaves work behind pushes the next
  redis.call('PEXPIRE', name, 60000)
end

local function notify(controller, fields)
  local name = key('out', controller)
  redis.call('XADD', name, 'MAXLEN', '~', 10000, '*', unpack(fields))
  redis.call('PEXPIRE', name, OUT_MS)
end

-- "Look at this job": the controller answers with a resync, whatever the matter is.
local function nudge(controller, id) notify(controller, {id .. ' ?', ''}) end

local function slot(assignment, controller, length, frame)
  return assignment .. controller .. length .. ':' .. frame
end

local function read_slot(value)
  if not value then return nil end
  local length, frame = string.match(value, '^(%d+):(%d+)$', 65)
  return string.sub(value, 1, 32), string.sub(value, 33, 64), tonumber(length), tonumber(frame)
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do list[#list + 1] = word end
  return list
end

local function missing_blobs(digests)
  local missing = {}
  for _, digest in ipairs(words(digests)) do
    if redis.call('EXISTS', key('blob', digest)) == 0 then missing[#missing + 1] = digest end
  end
  return missing
end

-- Pixels are counted where they are stored: `pixels` holds 'digest size' by end of life, `pixel_bytes` their sum.
-- They may go early when no live job uses them and the room is needed.
local PIXELS, PIXEL_BYTES = PREFIX .. 'pixels', PREFIX .. 'pixel_bytes'

local function uncount(entry)
  local digest, size = string.match(entry, '^(%S+) (%d+)$')
  if redis.call('ZREM', PIXELS, entry) == 1 then redis.call('DECRBY', PIXEL_BYTES, size) end
  return digest
end

local function forget_expired_blobs()
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', PIXELS, '-inf', now, 'LIMIT', 0, 256)) do uncount(entry) end
end

-- Keeps a blob at least `ttl` longer.
local function keep_blob(digest, ttl)
  local name = key('blob', digest)
  extend(name, ttl)
  local size = redis.call('STRLEN', name)
  if size == 0 then return end
  if redis.call('ZADD', PIXELS, now + redis.call('PTTL', name), digest .. ' ' .. size) == 1 then
    redis.call('INCRBY', PIXEL_BYTES, size)
  end
end

-- Stores the (digest, bytes) pairs of ARGV from `first` on.
local function store_blobs(first, ttl)
  for i = first, #ARGV, 2 do
    redis.call('SET', key('blob', ARGV[i]), ARGV[i + 1], 'KEEPTTL')
    keep_blob(ARGV[i], ttl)
  end
end

local function use_blobs(id, digests, ttl)
  for _, digest in ipairs(words(digests)) do
    keep_blob(digest, ttl)
    redis.call('SADD', key('users', digest), id)
    extend(key('users', digest), ttl)
  end
end

-- The index of the frame in the log; frames are whole and never change.
local function append(id, payload)
  local name = key('log', id)
  local index = redis.call('RPUSH', name, payload) - 1
  if index == 0 then redis.call('PEXPIRE', name, math.max(redis.call('PTTL', key('job', id)), 1)) end
  return index
end

-- Back to its old place in the queue; `length` is the log's in tokens.
local function put_back(id, length)
  local job = key('job', id)
  local model, score = unpack(redis.call('HMGET', job, 'model', 'score'))
  if not model then return end -- expired
  redis.call('HSET', job, 'state', 'queued', 'assignment', '', 'worker', '', 'length', length)
  local room = key('wait', model)
  redis.call('ZADD', room, score, id)
  extend(room, redis.call('PTTL', job))
  wake(model)
end

-- Takes the job from its worker, who learns it at its next emit. Returns the log's length, if it ran.
local function fence(id)
  local worker = redis.call('HGET', key('job', id), 'worker')
  if not worker or worker == '' then return nil end
  local _, _, length = read_slot(redis.call('HGET', key('inflight', worker), id))
  redis.call('HDEL', key('inflight', worker), id)
  return length
end

local function end_job(id, state)
  local job = key('job', id)
  local model, tenant, controller, digests =
    unpack(redis.call('HMGET', job, 'model', 'tenant', 'controller', 'digests'))
  if not model then return end -- expired
  redis.call('HSET', job, 'state', state)
  for _, digest in ipairs(words(digests or '')) do redis.call('SREM', key('users', digest), id) end
  if state ~= 'orphaned' then redis.call('HDEL', job, 'payload', 'digests') end -- an orphan may be adopted
  redis.call('ZREM', key('wait', model), id)
  redis.call('SREM', key('tenant', tenant), id)
  redis.call('SREM', key('live', controller), id)
  redis.call('PEXPIRE', job, KEEP_MS)
  redis.call('PEXPIRE', key('log', id), KEEP_MS)
end

-- Virtual time in tokens: the highest score handed out. It also ticks a little with each arrival, so that among
-- equals who came first is served first.
local function virtual_time(model) return tonumber(redis.call('GET', key('clock', model)) or '0') end

local function set_virtual_time(model, value)
  local life = math.max(FAIR_MS, redis.call('PTTL', key('wait', model)))
  redis.call('SET', key('clock', model), string.format('%.17g', value), 'PX', life)
end

local function arrival(model)
  local virtual = virtual_time(model) + 0.001
  set_virtual_time(model, virtual)
  return string.format('%.17g', virtual)
end

-- Start-time fair queueing: a tenant's next job starts where its last one, weighed by cost, ends.
local function fair_score(model, tenant, cost)
  local fair = key('fair', model)
  local score = math.max(tonumber(arrival(model)), tonumber(redis.call('ZSCORE', fair, tenant) or '0'))
  redis.call('ZADD', fair, score + cost, tenant)
  extend(fair, FAIR_MS)
  return string.format('%.17g', score)
end

local function belong(id, tenant, controller, ttl)
  redis.call('SADD', key('tenant', tenant), id)
  extend(key('tenant', tenant), ttl)
  redis.call('SADD', key('live', controller), id)
  extend(key('live', controller), ttl)
end

-- Writes all of a job but its place in the queue. `owner` counts take-overs, `ttl` is without KEEP_MS.
local function make_job(id, controller, tenant, model, payload, digests, ttl, score, crashes, owner)
  local job, life = key('job', id), ttl + KEEP_MS
  redis.call('HSET', job, 'controller', controller, 'tenant', tenant, 'model', model, 'payload', payload,
    'digests', digests, 'print', redis.sha1hex(payload), 'ends', now + ttl, 'score', score, 'crashes', crashes,
    'owner', owner)
  redis.call('PEXPIRE', job, life)
  use_blobs(id, digests, life)
  belong(id, tenant, controller, life)
end

-- The job's events go to `controller` from now on.
local function own(id, controller)
  local job = key('job', id)
  local old, worker, tenant = unpack(redis.call('HMGET', job, 'controller', 'worker', 'tenant'))
  redis.call('SREM', key('live', old), id)
  redis.call('HSET', job, 'controller', controller)
  belong(id, tenant, controller, redis.call('PTTL', job))
  if worker and worker ~= '' then
    local slots = key('inflight', worker)
    local assignment, _, length, frame = read_slot(redis.call('HGET', slots, id))
    if assignment then redis.call('HSET', slots, id, slot(assignment, controller, length, frame)) end
  end
end

local function see_controller(controller) redis.call('ZADD', PREFIX .. 'controllers', now, controller) end
