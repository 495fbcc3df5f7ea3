-- emit: one engine step's frames of all streams, and the sign of progress. A frame is appended whole or not at
-- all: its writer must hold the job (fence), its number must follow the last one (a lower number is a doubled call
-- and skipped) and its offset must be the log's length. A gap means that the log lost writes: the job goes back to
-- the queue, to be continued from the log. One XADD per controller. Answers the jobs refused, and '' if somebody waits
-- who would be a guest (see pull), for a worker that names its model.
-- ARGV: worker, lease_ms, hang_ms, model or '', (job, assignment, frame, offset, num_tokens, is_final, payload)...
local ACQUITTAL = 8
local worker = ARGV[1]
local slots = key('inflight', worker)
redis.call('ZADD', PREFIX .. 'workers', now + tonumber(ARGV[2]), worker)
redis.call('ZADD', PREFIX .. 'progress', now + tonumber(ARGV[3]), worker)
if #ARGV == 4 then return {} end

local held, refused, changed, gone, outs = {}, {}, {}, {}, {}
local flat = redis.call('HGETALL', slots)
for i = 1, #flat, 2 do held[flat[i]] = flat[i + 1] end

local function release(id)
  held[id] = nil
  changed[id] = nil
  gone[#gone + 1] = id
end

-- A suspect that is so many frames beyond where its last worker crashed is one no more; but not for ever again. If
-- others wait to be tried it makes room for them: true.
local function acquit(id)
  local model, crashes, doubts = unpack(redis.call('HMGET', key('job', id), 'model', 'crashes', 'doubts'))
  if tonumber(doubts or 0) < SUSPECT or tonumber(crashes) >= MAX_DOUBTS then return false end
  redis.call('HSET', key('job', id), 'doubts', 0)
  wake(model)
  return redis.call('EXISTS', key(WARD, model)) == 1
end

local function write(id, assignment, controller, length, frame, count, final, payload)
  local out = outs[controller] or {}
  outs[controller] = out
  out[#out + 1] = id .. ' ' .. append(id, payload)
  out[#out + 1] = payload
  if final == '1' then
    end_job(id, 'done')
    release(id)
  else
    held[id] = slot(assignment, controller, length + count, frame)
    changed[id] = true
    if frame == ACQUITTAL and acquit(id) then
      put_back(id, length + count)
      release(id)
      refused[#refused + 1] = id
    end
  end
end

for i = 5, #ARGV, 7 do
  local id, assignment, frame = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local offset, count = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local holder, controller, length, last = read_slot(held[id])
  if holder ~= assignment then
    local state, writer = unpack(redis.call('HMGET', key('job', id), 'state', 'assignment'))
    if state ~= 'done' or writer ~= assignment then refused[#refused + 1] = id end -- else: its own end, sent twice
  elseif frame > last then
    if frame == last + 1 and offset == length then
      write(id, assignment, controller, length, frame, count, ARGV[i + 5], ARGV[i + 6])
    else
      put_back(id, length)
      release(id)
      refused[#refused + 1] = id
    end
  end
end

local fields = {}
for id in pairs(changed) do
  fields[#fields + 1] = id
  fields[#fields + 1] = held[id]
end
if #fields > 0 then redis.call('HSET', slots, unpack(fields)) end
if #gone > 0 then redis.call('HDEL', slots, unpack(gone)) end
for controller, out in pairs(outs) do notify(controller, out) end
if ARGV[4] ~= '' and find_guest(ARGV[4], redis.call('HGETALL', slots)) then refused[#refused + 1] = '' end
return refused
