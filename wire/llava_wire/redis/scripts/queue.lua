-- What every script shares, put in front of each by the loader: the names of the keys and the moves of a job.
-- All times are Redis's own, in milliseconds. A job's hash outlives its deadline by KEEP_MS, so that a reader
-- who comes late still finds the end. `inflight:{worker}` holds, per job, assignment id (32) .. controller id
-- (32) .. log length in tokens .. ':' .. number of the last frame: one HGETALL is fence, route and gap check.
local PREFIX = '{lv}:'
local KEEP_MS = 300000
local OUT_MS = 600000
local FAIR_MS = 3600000
local ORDER_MS = 60000
local SERVED_MS, NUM_SERVED = 10000, 6
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

-- A job waits in one room of its model, by its priority. Suspects, whose workers have crashed `SUSPECT` times since
-- they were last beyond doubt, wait apart: they run alone. `since` tells when those that may grow old came, `backlog`
-- is what the waiting ones will cost together.
local ROOMS = {'wait-high', 'wait', 'wait-low'}
local WARD = 'suspects'
local SUSPECT, MAX_DOUBTS = 2, 6
local AGE_MS = 30000

local function room_of(priority, doubts)
  if tonumber(doubts or 0) >= SUSPECT then return WARD end
  return priority > 0 and ROOMS[1] or priority < 0 and ROOMS[3] or ROOMS[2]
end

local function num_in_line(model)
  local count = 0
  for _, room in ipairs(ROOMS) do count = count + redis.call('ZCARD', key(room, model)) end
  return count
end

local function num_waiting(model) return num_in_line(model) + redis.call('ZCARD', key(WARD, model)) end

-- The first job, and its room, of a tenant of whom a worker holds nothing. Of the first room that is not empty, since
-- urgent work goes first. `slots` are the worker's, as HGETALL gives them.
local NUM_LOOKED_AT = 64 -- with equal costs it is among the first
local function find_guest(model, slots)
  for _, name in ipairs(ROOMS) do
    local room, here = key(name, model), {}
    local ids = redis.call('ZRANGE', room, 0, NUM_LOOKED_AT - 1)
    for i = 1, #ids > 0 and #slots or 0, 2 do
      here[redis.call('HGET', key('job', slots[i]), 'tenant') or ''] = true
    end
    for _, id in ipairs(ids) do
      if not here[redis.call('HGET', key('job', id), 'tenant')] then return id, room end
    end
    if #ids > 0 then return nil end
  end
end

-- A room was left; the last one out makes the sum exactly nothing.
local function lighten(model, id, cost)
  redis.call('ZREM', key('since', model), id)
  if num_waiting(model) == 0 then return redis.call('DEL', key('backlog', model), key('since', model)) end
  redis.call('INCRBYFLOAT', key('backlog', model), -cost)
  return 1
end

local function leave_room(id, model, cost)
  local left = redis.call('ZREM', key(WARD, model), id)
  for _, room in ipairs(ROOMS) do left = left + redis.call('ZREM', key(room, model), id) end
  if left > 0 then lighten(model, id, cost) end
end

-- Back to its old place in the queue; `length` is the log's in tokens.
local function put_back(id, length)
  local job = key('job', id)
  local model, score, cost, priority, doubts =
    unpack(redis.call('HMGET', job, 'model', 'score', 'cost', 'priority', 'doubts'))
  if not model then return end -- expired
  redis.call('HSET', job, 'state', 'queued', 'assignment', '', 'worker', '', 'length', length)
  local life, name = redis.call('PTTL', job), room_of(tonumber(priority), doubts)
  local room, backlog, since = key(name, model), key('backlog', model), key('since', model)
  if redis.call('ZADD', room, score, id) == 1 then redis.call('INCRBYFLOAT', backlog, cost) end
  extend(room, life)
  extend(backlog, life)
  if name == ROOMS[2] or name == ROOMS[3] then
    redis.call('ZADD', since, 'NX', now, id)
    extend(since, life)
  end
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

-- What is done is counted by tens of seconds, so that who is refused can be told when to come again.
local function count_served(model, cost)
  local bucket = key('served', model .. ':' .. math.floor(now / SERVED_MS))
  redis.call('INCRBYFLOAT', bucket, cost)
  redis.call('PEXPIRE', bucket, (NUM_SERVED + 1) * SERVED_MS)
end

-- Cost a second, measured over the last minute; nil if nothing was done.
local function rate(model)
  local sum, oldest, last = 0, nil, math.floor(now / SERVED_MS)
  for bucket = last, last - NUM_SERVED, -1 do
    local served = redis.call('GET', key('served', model .. ':' .. bucket))
    if served then sum, oldest = sum + tonumber(served), bucket end
  end
  return oldest and sum * 1000 / math.max(now - oldest * SERVED_MS, 1000)
end

local function end_job(id, state)
  local job = key('job', id)
  local model, tenant, controller, digests, cost =
    unpack(redis.call('HMGET', job, 'model', 'tenant', 'controller', 'digests', 'cost'))
  if not model then return end -- expired
  redis.call('HSET', job, 'state', state)
  if state == 'done' then count_served(model, cost) end
  for _, digest in ipairs(words(digests or '')) do redis.call('SREM', key('users', digest), id) end
  if state ~= 'orphaned' then redis.call('HDEL', job, 'payload', 'digests') end -- an orphan may be adopted
  leave_room(id, model, cost)
  redis.call('HDEL', key('tenant', tenant), id)
  redis.call('SREM', key('live', controller), id)
  redis.call('PEXPIRE', job, KEEP_MS)
  redis.call('PEXPIRE', key('log', id), KEEP_MS)
end

-- Virtual time in tokens: the highest score handed out. It also ticks a little with each arrival, so that among
-- equals who came first is served first.
local function virtual_time(model) return tonumber(redis.call('GET', key('clock', model)) or '0') end

local function set_virtual_time(model, value)
  local life = FAIR_MS
  for _, room in ipairs(ROOMS) do life = math.max(life, redis.call('PTTL', key(room, model))) end
  redis.call('SET', key('clock', model), string.format('%.17g', value), 'PX', life)
end

local function arrival(model)
  local virtual = virtual_time(model) + 0.001
  set_virtual_time(model, virtual)
  return string.format('%.17g', virtual)
end

-- Start-time fair queueing: a tenant's next job starts where its last one of that priority, whose cost is divided by
-- the tenant's weight, ends.
local function fair_score(model, tenant, priority, cost)
  local fair, member = key('fair', model), room_of(priority) .. ' ' .. tenant
  local score = math.max(tonumber(arrival(model)), tonumber(redis.call('ZSCORE', fair, member) or '0'))
  redis.call('ZADD', fair, score + cost, member)
  extend(fair, FAIR_MS)
  return string.format('%.17g', score)
end

local function belong(id, tenant, controller, cost, ttl)
  redis.call('HSET', key('tenant', tenant), id, cost)
  extend(key('tenant', tenant), ttl)
  redis.call('SADD', key('live', controller), id)
  extend(key('live', controller), ttl)
end

-- Writes all of a job but its place in the queue, from the first twelve arguments of `submit` and `resync`: job,
-- controller, tenant, model, cost, payload, ttl_ms (without KEEP_MS), digests, priority, nonce, outline, trace. `owner` counts
-- take-overs, `crashes` the deaths of its workers, `doubts` those since it was last beyond doubt.
local function make_job(score, crashes, doubts, owner)
  local id, controller, tenant, model, cost, payload, ttl, digests, priority, nonce, outline = unpack(ARGV, 1, 11)
  local job, life = key('job', id), tonumber(ttl) + KEEP_MS
  redis.call('HSET', job, 'controller', controller, 'tenant', tenant, 'model', model, 'payload', payload,
    'digests', digests, 'print', redis.sha1hex(payload), 'ends', now + tonumber(ttl), 'score', score,
    'crashes', crashes, 'doubts', doubts, 'owner', owner, 'cost', cost, 'priority', priority, 'nonce', nonce,
    'outline', outline)
  if ARGV[12] ~= '' then redis.call('HSET', job, 'trace', ARGV[12]) end
  redis.call('PEXPIRE', job, life)
  use_blobs(id, digests, life)
  belong(id, tenant, controller, cost, life)
end

-- The job's events go to `controller` from now on.
local function own(id, controller)
  local job = key('job', id)
  local old, worker, tenant, cost = unpack(redis.call('HMGET', job, 'controller', 'worker', 'tenant', 'cost'))
  redis.call('SREM', key('live', old), id)
  redis.call('HSET', job, 'controller', controller)
  belong(id, tenant, controller, cost, redis.call('PTTL', job))
  if worker and worker ~= '' then
    local slots = key('inflight', worker)
    local assignment, _, length, frame = read_slot(redis.call('HGET', slots, id))
    if assignment then redis.call('HSET', slots, id, slot(assignment, controller, length, frame)) end
  end
end

local function see_controller(controller) redis.call('ZADD', PREFIX .. 'controllers', now, controller) end
