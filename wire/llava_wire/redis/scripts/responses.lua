-- responses: store responses and chat completions with their input, so that they can be listed and continued later. A
-- response is first added, and its input is then written in parts. Its output is written the same way after its job has
-- ended, and `finish` makes it visible. Every step can be repeated. If there is no room, the responses that expire first
-- are removed: those of the tenant if the tenant has reached its limit, otherwise those of any tenant. `unsaved` contains
-- the responses without an output, ordered by the time at which a controller next looks for the output.
-- `chats:{tenant}` contains the listed responses of a tenant, ordered by expiry time.
-- ARGV: step, response, tenant, then the arguments of the step:
--   add: payload, previous response or '', size of the input, ttl_ms, max_tenant_bytes, max_bytes, is_listed (0 or 1)
--                          Reply: {'added'}, {'exists'} or {'too_large', size}
--   write: 'input' or 'output', offset, bytes   Reply: 1 if the response still exists, else 0
--   finish: payload, size of the output, max_tenant_bytes, max_bytes   Reply: 1 if the response still exists, else 0.
--                          If only newer responses could make room for the output, the response is removed.
--   read: number of responses, ttl_ms           Reply: {response...}, following `previous` from the given response.
--                          Stops early after READ_BYTES. If ttl_ms is not 0, restarts the TTL of these responses.
--   size: number of responses                   Reply: the total size of the inputs and outputs of the responses that
--                          `read` would return without its limits
--   part: 'input' or 'output', first, last      Reply: the bytes in this range
--   list: 'asc' or 'desc', last ID of the previous page or '', number
--                          Reply: {response...} without data
--   update: payload        Reply: 1 if the response exists, else 0
--   remove                 Reply: 1 if the response existed, else 0
--   due: number, pause_ms  Reply: {{ID, tenant}...}   (the response and tenant arguments are unused)
-- A response in a reply is {ID, payload, previous, size of the input, size of the output or -1, input, output}. The input
-- and the output are nil if they would make the reply too large.
-- Uses shared/base.lua: PREFIX, key, now, extend; shared/budget.lua: budget.
local step, id, tenant = ARGV[1], ARGV[2], ARGV[3]
local OVERHEAD = 1024 -- counted per response for its keys and index entries
local READ_BYTES = 1048576
local UNSAVED, FIRST_LOOK_MS = PREFIX .. 'unsaved', 2000

local function names(each) return key('response', each), key('input', each), key('output', each) end

local function size_of(each)
  local name = key('response', each)
  local input, output = unpack(redis.call('HMGET', name, 'input_size', 'output_size'))
  return OVERHEAD + redis.call('HSTRLEN', name, 'payload') + (input or 0) + math.max(output or 0, 0)
end

local function is_own(each) return redis.call('HGET', key('response', each), 'tenant') == tenant end

local function has_output(each) return tonumber(redis.call('HGET', key('response', each), 'output_size')) >= 0 end

local function remove(each, size)
  local owner = redis.call('HGET', key('response', each), 'tenant')
  budget('response', owner or tenant).remove(each, size)
  redis.call('ZREM', UNSAVED, each)
  redis.call('ZREM', key('chats', owner or tenant), each)
  return redis.call('DEL', names(each))
end

-- Removes responses that expire before `expiry` until `size` bytes are available. Returns whether they are.
local function make_room(space, size, expiry, max_tenant, max_all)
  while true do
    local scope = space.exceeded(size, max_tenant, max_all)
    if not scope then return true end
    local oldest, oldest_size, oldest_expiry = space.oldest(scope == 'all')
    if not oldest or oldest_expiry >= expiry then return false end
    remove(oldest, oldest_size)
  end
end

local function set_ttl(space, each, ttl)
  local response, input, output = names(each)
  for _, name in ipairs({response, input, output}) do redis.call('PEXPIRE', name, ttl) end
  space.add(each, size_of(each), ttl)
end

-- Returns a response if all of its data exists.
local function describe(each, with_data, max_bytes)
  local name, input, output = names(each)
  local owner, payload, previous, num_in, num_out =
    unpack(redis.call('HMGET', name, 'tenant', 'payload', 'previous', 'input_size', 'output_size'))
  if owner ~= tenant or redis.call('STRLEN', input) ~= tonumber(num_in) then return nil, 0 end
  num_in, num_out = tonumber(num_in), tonumber(num_out)
  if redis.call('STRLEN', output) < num_out then return nil, 0 end
  local size = num_in + math.max(num_out, 0)
  local fits = with_data and size <= max_bytes
  local data = fits and {redis.call('GET', input) or '', num_out >= 0 and redis.call('GET', output) or ''} or {false, false}
  return {each, payload, previous, num_in, num_out, data[1], data[2]}, size
end

local steps = {}

function steps.add()
  local payload, previous, size, ttl, max_tenant, max_all, is_listed = unpack(ARGV, 4)
  local needed = OVERHEAD + #payload + size
  if needed > tonumber(max_tenant) or needed > tonumber(max_all) then return {'too_large', needed} end
  local stored_size = is_own(id) and redis.call('HGET', key('response', id), 'input_size')
  if stored_size then -- a repeated call continues only an interrupted one with the same input
    local is_complete = redis.call('STRLEN', key('input', id)) == tonumber(stored_size)
    return {(is_complete or stored_size ~= size) and 'exists' or 'added'}
  end
  local space, name = budget('response', tenant), names(id)
  make_room(space, needed, now + ttl + 1, tonumber(max_tenant), tonumber(max_all))
  redis.call('HSET', name, 'tenant', tenant, 'payload', payload, 'previous', previous, 'input_size', size,
    'output_size', -1)
  set_ttl(space, id, tonumber(ttl))
  redis.call('ZADD', UNSAVED, now + FIRST_LOOK_MS, id)
  if is_listed == '1' then
    local chats = key('chats', tenant)
    redis.call('ZREMRANGEBYSCORE', chats, '-inf', now)
    redis.call('ZADD', chats, now + ttl, id)
    extend(chats, tonumber(ttl))
  end
  return {'added'}
end

function steps.write()
  if not is_own(id) then return 0 end
  if ARGV[4] == 'output' and has_output(id) then return 1 end
  local life = redis.call('PTTL', key('response', id))
  redis.call('SETRANGE', key(ARGV[4], id), ARGV[5], ARGV[6])
  redis.call('PEXPIRE', key(ARGV[4], id), life)
  return 1
end

function steps.finish()
  local payload, size, max_tenant, max_all = unpack(ARGV, 4)
  if not is_own(id) then return 0 end
  if has_output(id) then return 1 end -- another controller was faster
  local space, name = budget('response', tenant), names(id)
  local life = redis.call('PTTL', name)
  local expiry = tonumber(redis.call('ZSCORE', space.entries, id .. ' ' .. size_of(id)) or now + life)
  space.remove(id, size_of(id))
  redis.call('HSET', name, 'payload', payload, 'output_size', size)
  if not make_room(space, size_of(id), expiry, tonumber(max_tenant), tonumber(max_all)) then
    remove(id, size_of(id))
    return 0
  end
  set_ttl(space, id, life)
  redis.call('ZREM', UNSAVED, id)
  return 1
end

function steps.read()
  local reply, left, ttl = {}, READ_BYTES, tonumber(ARGV[5])
  local space = budget('response', tenant)
  for _ = 1, tonumber(ARGV[4]) do
    local found, size = describe(id, true, left)
    if not found then break end
    if ttl > 0 then set_ttl(space, id, ttl) end
    reply[#reply + 1], left, id = found, left - size, found[3]
    if id == '' or left <= 0 then break end
  end
  return reply
end

function steps.size()
  local total = 0
  for _ = 1, tonumber(ARGV[4]) do
    if not is_own(id) then break end
    local previous, num_in, num_out =
      unpack(redis.call('HMGET', key('response', id), 'previous', 'input_size', 'output_size'))
    total, id = total + num_in + math.max(tonumber(num_out), 0), previous
    if id == '' then break end
  end
  return total
end

function steps.part()
  return is_own(id) and redis.call('GETRANGE', key(ARGV[4], id), ARGV[5], ARGV[6])
end

function steps.list()
  local order, after, number = unpack(ARGV, 4)
  local chats, reply, first = key('chats', tenant), {}, 0
  local range, rank = 'ZREVRANGE', 'ZREVRANK'
  if order == 'asc' then range, rank = 'ZRANGE', 'ZRANK' end
  if after ~= '' then
    local place = redis.call(rank, chats, after)
    if not place then return {} end
    first = place + 1
  end
  while #reply < tonumber(number) do
    local page = redis.call(range, chats, first, first + number - 1)
    if #page == 0 then break end
    for _, each in ipairs(page) do
      local found = describe(each, false, 0)
      if found and #reply < tonumber(number) then reply[#reply + 1] = found end
    end
    first = first + #page
  end
  return reply
end

function steps.update()
  if not is_own(id) then return 0 end
  local space, name = budget('response', tenant), key('response', id)
  space.remove(id, size_of(id))
  redis.call('HSET', name, 'payload', ARGV[4])
  space.add(id, size_of(id), redis.call('PTTL', name))
  return 1
end

function steps.remove()
  if not is_own(id) then return 0 end
  remove(id, size_of(id))
  return 1
end

function steps.due()
  local reply = {}
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', UNSAVED, '-inf', now, 'LIMIT', 0, ARGV[4])) do
    local owner = redis.call('HGET', key('response', each), 'tenant')
    if owner then
      redis.call('ZADD', UNSAVED, now + ARGV[5], each)
      reply[#reply + 1] = {each, owner}
    else
      redis.call('ZREM', UNSAVED, each)
    end
  end
  return reply
end

return steps[step]()
