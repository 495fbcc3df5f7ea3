-- Shared by all scripts: key names, expiry, wake-ups, streams and worker slots. The loader puts the files of this
-- folder in front of every script. All times are Redis's own, in milliseconds.
local PREFIX = '{lv}:'
local KEEP_MS = 300000 -- how long a job's hash outlives its deadline, so that a late reader still finds the end
local OUT_MS = 600000
local COMMAND_MS = 60000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function key(kind, name) return PREFIX .. kind .. ':' .. name end

-- Raises the time to live of a key to at least `ttl`; it never shortens it.
local function extend(name, ttl)
  if redis.call('PTTL', name) < ttl then redis.call('PEXPIRE', name, ttl) end
end

local function split(text)
  local words = {}
  for word in string.gmatch(text, '%S+') do words[#words + 1] = word end
  return words
end

-- Wakes one worker that waits for work. One token is enough: a pull that leaves work behind pushes the next.
local function wake(model)
  local name = key('wake', model)
  redis.call('LPUSH', name, '1')
  redis.call('LTRIM', name, 0, 0)
  redis.call('PEXPIRE', name, 60000)
end

local function notify(controller, fields)
  local name = key('out', controller)
  redis.call('XADD', name, 'MAXLEN', '~', 10000, '*', unpack(fields))
  redis.call('PEXPIRE', name, OUT_MS)
end

-- Asks the controller to resync this job.
local function request_resync(controller, id) notify(controller, {id .. ' ?', ''}) end

local function touch_controller(controller) redis.call('ZADD', PREFIX .. 'controllers', now, controller) end

-- `inflight:{worker}` holds, per job, assignment ID (32) .. controller ID (32) .. log length in tokens .. ':' .. number
-- of the last frame: one HGETALL gives fencing token, route and gap check.
local function pack_slot(assignment, controller, length, frame)
  return assignment .. controller .. length .. ':' .. frame
end

local function unpack_slot(value)
  if not value then return nil end
  local length, frame = string.match(value, '^(%d+):(%d+)$', 65)
  return string.sub(value, 1, 32), string.sub(value, 33, 64), tonumber(length), tonumber(frame)
end
