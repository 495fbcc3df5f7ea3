-- pull: hand out up to n jobs, first in the fair order, each under a nonce of the caller, which becomes the
-- assignment id. The same call sent twice finds its nonces and gives the same answer, so no job is ever assigned
-- to a worker that never heard of it. A job whose pixels are gone is parked and its controller told. Rooms are emptied
-- in the order of priority; who has waited for AGE_MS counts as urgent. A suspect is handed out alone, to a worker that
-- holds nothing, which gets nothing else until the suspect is beyond doubt. If all are busy one of them is the next to
-- run empty (`ward`). A worker without a free place asks for a guest: the first job in line of a tenant of whom it holds
-- nothing.
-- ARGV: worker, model, lease_ms, hang_ms, is for a guest, nonce...
-- Answer: {{job, assignment, length, payload, log, end of its life, trace}...}, {digest, bytes...}, now
local worker, model, lease, hang = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local is_for_guest, num_nonces = ARGV[5] == '1', #ARGV - 5
local slots = key('inflight', worker)
redis.call('ZADD', PREFIX .. 'workers', now + lease, worker)

local answer, blobs, sent = {}, {}, {}
local function hand_out(id, assignment, length)
  local payload, digests, ends, trace =
    unpack(redis.call('HMGET', key('job', id), 'payload', 'digests', 'ends', 'trace'))
  if not payload then return end
  for _, digest in ipairs(words(digests)) do
    local bytes = not sent[digest] and redis.call('GET', key('blob', digest))
    if bytes then
      blobs[#blobs + 1] = digest
      blobs[#blobs + 1] = bytes
      sent[digest] = true
    end
  end
  local log = redis.call('LRANGE', key('log', id), 0, -1)
  answer[#answer + 1] = {id, assignment, length, payload, log, tonumber(ends), trace or ''}
end

local mine = {}
for i = 6, #ARGV do mine[ARGV[i]] = true end
local held = redis.call('HGETALL', slots)
for i = 1, #held, 2 do
  local assignment, _, length = read_slot(held[i + 1])
  if mine[assignment] then hand_out(held[i], assignment, length) end
end
if #answer > 0 then return {answer, blobs, now} end

local function assign(id, assignment)
  local job = key('job', id)
  local controller, length, digests, cost = unpack(redis.call('HMGET', job, 'controller', 'length', 'digests', 'cost'))
  lighten(model, id, cost or 0)
  if not digests then return end -- expired while it waited
  if #missing_blobs(digests) > 0 then
    redis.call('HSET', job, 'state', 'parked')
    return nudge(controller, id)
  end
  redis.call('HSET', job, 'state', 'running', 'assignment', assignment, 'worker', worker)
  redis.call('HSET', slots, id, slot(assignment, controller, length, 0))
  extend(slots, redis.call('PTTL', job))
  hand_out(id, assignment, tonumber(length))
end

local function suspects_turn()
  if #held == 2 and tonumber(redis.call('HGET', key('job', held[1]), 'doubts') or 0) >= SUSPECT then return true end
  local ward = key('ward', model)
  while #held == 0 do
    local first = redis.call('ZPOPMIN', key(WARD, model))
    if #first == 0 then return false end
    assign(first[1], ARGV[6])
    if #answer > 0 then
      redis.call('DEL', ward)
      return true
    end
  end
  if redis.call('EXISTS', key(WARD, model)) == 0 then return false end
  redis.call('SET', ward, worker, 'PX', lease, 'NX')
  if redis.call('GET', ward) ~= worker then return false end
  redis.call('PEXPIRE', ward, lease)
  return true
end

local function grow_old()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('since', model), '-inf', now - AGE_MS, 'LIMIT', 0, 64)) do
    for _, name in ipairs({ROOMS[2], ROOMS[3]}) do
      local score = redis.call('ZSCORE', key(name, model), id)
      if score then
        redis.call('ZREM', key(name, model), id)
        redis.call('ZADD', key(ROOMS[1], model), score, id)
        extend(key(ROOMS[1], model), redis.call('PTTL', key('backlog', model)))
      end
    end
    redis.call('ZREM', key('since', model), id)
  end
end

local function first_in_line()
  for _, name in ipairs(ROOMS) do
    local first = redis.call('ZPOPMIN', key(name, model))
    if #first > 0 then return first end
  end
end

-- Out of turn, so that the clock stays.
local function first_guest()
  local id, room = find_guest(model, held)
  if not id then return nil end
  redis.call('ZREM', room, id)
  return {id, 0}
end

local is_over = suspects_turn()
if not is_over then grow_old() end
local virtual = virtual_time(model)
local last = virtual
for _ = 1, num_nonces + 64 do -- 64: how many parked or expired jobs one call clears away
  if is_over or #answer == num_nonces then break end
  local first = is_for_guest and first_guest() or not is_for_guest and first_in_line()
  if not first then break end
  last = math.max(last, tonumber(first[2]))
  assign(first[1], ARGV[6 + #answer])
end
if last > virtual then
  set_virtual_time(model, last)
  redis.call('ZREMRANGEBYSCORE', key('fair', model), '-inf', last) -- a tenant behind the clock starts at the clock
end
if #answer > 0 and #held == 0 then redis.call('ZADD', PREFIX .. 'progress', now + hang, worker) end
-- Who may not have it must not be woken by it; and for a guest nobody was.
if not is_over and not is_for_guest and num_in_line(model) > 0 then wake(model) end
return {answer, blobs, now}
