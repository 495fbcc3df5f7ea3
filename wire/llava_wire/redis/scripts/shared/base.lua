-- Helpers for all scripts: key names, expiry, wake-ups, streams and worker slots. The loader prepends the files in
-- this folder to every script, and before them `local PREFIX = ...`, the prefix of all keys of the shard. All times are in milliseconds, according to the Redis clock.
local KEEP_MS = 300000 -- a job's hash outlives its deadline by this time, so that late readers find the final event
local OUT_MS = 600000
local MAX_OUT_BYTES = 8388608
local COMMAND_MS = 60000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function key(kind, name) return PREFIX .. kind .. ':' .. name end

-- Extends the TTL of a key to at least `ttl`, and never shortens it.
local function extend(name, ttl)
  if redis.call('PTTL', name) < ttl then redis.call('PEXPIRE', name, ttl) end
end

local function split(text)
  local words = {}
  for word in string.gmatch(text, '%S+') do words[#words + 1] = word end
  return words
end

-- Makes `total` the sum of the sizes in `entries`, a ZSET of 'name size', if either of the two keys was lost. Otherwise,
-- the limit on this sum would be wrong from then on.
local function repair_sum(entries, total)
  local has_total, num_entries = redis.call('EXISTS', total) == 1, redis.call('ZCARD', entries)
  if num_entries == 0 and has_total then redis.call('DEL', total) end
  if num_entries == 0 or has_total then return end
  local sum = 0
  for _, entry in ipairs(redis.call('ZRANGE', entries, 0, -1)) do sum = sum + string.match(entry, ' (%d+)$') end
  redis.call('SET', total, string.format('%.0f', sum))
end

-- Wakes one waiting worker. One list element is enough, because each pull that leaves jobs in the queue pushes a new
-- one.
local function wake(model)
  local name = key('wake', model)
  redis.call('LPUSH', name, '1')
  redis.call('LTRIM', name, 0, 0)
  redis.call('PEXPIRE', name, 60000)
end

-- Adds an entry to the stream of a controller. `out_bytes` is the approximate size of the stream. If it exceeds
-- MAX_OUT_BYTES, the older half of the entries is removed. A controller that has not read them yet reads the logs of
-- its jobs.
local function notify(controller, fields)
  local name, total, size = key('out', controller), key('out_bytes', controller), 0
  for _, field in ipairs(fields) do size = size + #field end
  redis.call('XADD', name, 'MAXLEN', '~', 10000, '*', unpack(fields))
  redis.call('PEXPIRE', name, OUT_MS)
  local used = redis.call('INCRBY', total, size)
  if used == size then redis.call('PEXPIRE', total, OUT_MS) end
  if used > MAX_OUT_BYTES then
    redis.call('XTRIM', name, 'MAXLEN', math.floor(redis.call('XLEN', name) / 2))
    redis.call('SET', total, math.floor(used / 2), 'PX', OUT_MS)
  end
end

-- Asks the controller to resync the job.
local function request_resync(controller, id) notify(controller, {id .. ' ?', ''}) end

local function touch_controller(controller) redis.call('ZADD', PREFIX .. 'controllers', now, controller) end

-- Fields without which a job cannot continue. A job that has lost one of them is treated like a job that was lost.
local FIELDS = {'controller', 'tenant', 'model', 'score', 'crashes', 'doubts', 'owner', 'cost', 'priority', 'ends',
  'nonce', 'print', 'outline', 'payload', 'digests'}

-- Deletes the hash of an unfinished job that has lost a field, so that its controller creates the job again. Scripts call
-- this function before they use the fields, because a script that fails halfway leaves its first writes behind.
local function delete_if_damaged(id)
  local job = key('job', id)
  local state = redis.call('HGET', job, 'state')
  if state == 'done' or state == 'cancelled' or redis.call('EXISTS', job) == 0 then return end
  if not state then return redis.call('DEL', job) end
  for _, value in ipairs(redis.call('HMGET', job, unpack(FIELDS))) do
    if not value then return redis.call('DEL', job) end
  end
end

-- `inflight:{worker}` maps each job to a string: assignment ID (32 characters) .. controller ID (32 characters) .. log
-- length in tokens .. ':' .. number of the last frame. A single HGETALL returns everything that `emit` needs for
-- fencing, routing and gap detection.
local function pack_slot(assignment, controller, length, frame)
  return assignment .. controller .. length .. ':' .. frame
end

local function unpack_slot(value)
  if not value then return nil end
  local length, frame = string.match(value, '^(%d+):(%d+)$', 65)
  return string.sub(value, 1, 32), string.sub(value, 33, 64), tonumber(length), tonumber(frame)
end
