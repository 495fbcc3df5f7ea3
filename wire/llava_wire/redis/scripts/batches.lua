-- batches: manage batches, which are lists of requests that controllers process in the background. Each batch is driven
-- by one controller at a time, the holder of its lease. Each write contains the ID of the driver, so that a driver that
-- has lost the lease cannot write. `batches` contains the unfinished batches of all tenants, ordered by the end of
-- their leases (before the first lease, by arrival time). `batching:{tenant}` contains the unfinished batches of one
-- tenant. Only one batch per tenant is driven at a time, so that no tenant can occupy all drivers.
-- ARGV: step, batch, then the arguments of the step:
--   create: tenant, payload, state, total, window_ms, keep_ms, max_unfinished, max_tenant_bytes, max_bytes
--                                 Reply: {'ok'}, {'batches', number} or {'tenant' | 'all', current usage, limit}
--   read: tenant                  Reply: the hash, or {} if the batch does not belong to the tenant
--   list: tenant, after, number   Reply: {hash...}, newest first
--   cancel: tenant                Reply: same as for read
--   claim: driver, lease_ms       Reply: {batch, hash, ms left} or {}   (the batch argument is unused)
--   renew: driver, lease_ms       Reply: {state, ms left}, or {} if another controller drives the batch
--   finished_lines: driver        Reply: the numbers of the lines that have a result
--   result: driver, line, completed | failed, bytes, max_batch_bytes, max_tenant_bytes, max_bytes
--                                 Reply: 1 stored, 0 line already has a result, -1 not the driver, -2 over a limit
--   results: driver, line...      Reply: the results of these lines
--   finish: driver, state, output file, error file   Reply: 1, or 0 if another controller drives the batch
--   release: driver
--   stats                         Reply: {{state, lines, completed, failed}...}, one per unfinished batch
-- The budget 'file' counts batches with their results, with IDs that start with 'batch:'.
-- Uses shared/base.lua: PREFIX, key, now, extend; shared/budget.lua: budget.
local OVERHEAD = 1024 -- counted per batch for its keys and index entries
local step, id = ARGV[1], ARGV[2]
local UNFINISHED = PREFIX .. 'batches'
local batch, results = key('batch', id), key('results', id)

local function is_driver() return redis.call('HGET', batch, 'driver') == ARGV[3] end

local function ms_left() return math.max(tonumber(redis.call('HGET', batch, 'ends')) - now, 0) end

-- Adds the batch to the unfinished batches again if their key was lost.
local function repair_unfinished()
  local state = redis.call('HGET', batch, 'state')
  if state == 'validating' or state == 'in_progress' or state == 'cancelling' then
    redis.call('ZADD', UNFINISHED, 'NX', now, id)
  end
end

local function read_own()
  if redis.call('HGET', batch, 'tenant') ~= ARGV[3] then return {} end
  repair_unfinished()
  return redis.call('HGETALL', batch)
end

local function set_state(state) redis.call('HSET', batch, 'state', state, state .. '_at', math.floor(now / 1000)) end

-- Counts the batch with its payload and `results_size` bytes of results.
local function count_batch(results_size)
  local tenant, counted = unpack(redis.call('HMGET', batch, 'tenant', 'counted'))
  local size = OVERHEAD + redis.call('HSTRLEN', batch, 'payload') + results_size
  local space = budget('file', tenant)
  if counted then space.remove('batch:' .. id, counted) end
  redis.call('HSET', batch, 'counted', size)
  space.add('batch:' .. id, size, redis.call('PTTL', batch))
end

local steps = {}

function steps.create()
  local tenant, payload, state, total, window, keep, max, max_tenant, max_all = unpack(ARGV, 3)
  local own, unfinished = key('batches', tenant), key('batching', tenant)
  if redis.call('EXISTS', batch) == 1 then return {'ok'} end
  local has = redis.call('SCARD', unfinished)
  if has >= tonumber(max) then return {'batches', has} end
  local scope, used, limit =
    budget('file', tenant).exceeded(OVERHEAD + #payload, tonumber(max_tenant), tonumber(max_all))
  if scope then return {scope, used, limit} end
  redis.call('HSET', batch, 'tenant', tenant, 'payload', payload, 'total', total, 'ends', now + tonumber(window),
    'driver', '', 'completed', 0, 'failed', 0)
  set_state(state)
  redis.call('PEXPIRE', batch, keep)
  count_batch(0)
  redis.call('ZREMRANGEBYSCORE', own, '-inf', now - tonumber(keep))
  redis.call('ZADD', own, now, id)
  extend(own, tonumber(keep))
  if state == 'failed' then return {'ok'} end
  redis.call('SADD', unfinished, id)
  extend(unfinished, tonumber(keep))
  redis.call('ZADD', UNFINISHED, now, id)
  return {'ok'}
end

steps.read = read_own

function steps.list()
  local own, first, reply = key('batches', ARGV[3]), 0, {}
  if ARGV[4] ~= '' then
    local rank = redis.call('ZREVRANK', own, ARGV[4])
    if not rank then return {} end
    first = rank + 1
  end
  for _, each in ipairs(redis.call('ZREVRANGE', own, first, first + ARGV[5] - 1)) do
    local hash = redis.call('HGETALL', key('batch', each))
    if #hash > 0 then reply[#reply + 1] = hash end
  end
  return reply
end

function steps.cancel()
  local state = redis.call('HGET', batch, 'state')
  if #read_own() > 0 and (state == 'validating' or state == 'in_progress') then set_state('cancelling') end
  return read_own()
end

function steps.claim()
  local driver, lease, busy = ARGV[3], tonumber(ARGV[4]), {}
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', UNFINISHED, '(' .. now, '+inf')) do
    busy[redis.call('HGET', key('batch', each), 'tenant') or ''] = true
  end
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', UNFINISHED, '-inf', now)) do
    id, batch = each, key('batch', each)
    local tenant, state = unpack(redis.call('HMGET', batch, 'tenant', 'state'))
    if not tenant then
      redis.call('ZREM', UNFINISHED, id)
    elseif not busy[tenant] then
      redis.call('ZADD', UNFINISHED, now + lease, id)
      redis.call('HSET', batch, 'driver', driver)
      if state == 'validating' then set_state('in_progress') end
      return {id, redis.call('HGETALL', batch), ms_left()}
    end
  end
  return {}
end

function steps.renew()
  if not is_driver() then return {} end
  repair_unfinished()
  redis.call('ZADD', UNFINISHED, 'XX', now + tonumber(ARGV[4]), id)
  return {redis.call('HGET', batch, 'state'), ms_left()}
end

function steps.finished_lines() return is_driver() and redis.call('HKEYS', results) or {} end

function steps.result()
  local line, outcome, bytes = ARGV[4], ARGV[5], ARGV[6]
  if not is_driver() then return -1 end
  if redis.call('HEXISTS', results, line) == 1 then return 0 end
  local size = tonumber(redis.call('HGET', batch, 'size') or '0') + #bytes
  if outcome == 'completed' then
    local space = budget('file', redis.call('HGET', batch, 'tenant'))
    if size > tonumber(ARGV[7]) or space.exceeded(#bytes, tonumber(ARGV[8]), tonumber(ARGV[9])) then return -2 end
  end
  redis.call('HSET', results, line, bytes)
  extend(results, redis.call('PTTL', batch))
  redis.call('HSET', batch, 'size', size)
  redis.call('HINCRBY', batch, outcome, 1)
  count_batch(size)
  return 1
end

function steps.results() return is_driver() and redis.call('HMGET', results, unpack(ARGV, 4)) or {} end

function steps.finish()
  if not is_driver() then return 0 end
  set_state(ARGV[4])
  redis.call('HSET', batch, 'output_file', ARGV[5], 'error_file', ARGV[6], 'driver', '')
  redis.call('ZREM', UNFINISHED, id)
  redis.call('SREM', key('batching', redis.call('HGET', batch, 'tenant')), id)
  redis.call('DEL', results)
  count_batch(0)
  return 1
end

function steps.release()
  if not is_driver() then return 0 end
  redis.call('HSET', batch, 'driver', '')
  redis.call('ZADD', UNFINISHED, 'XX', now - 1, id)
  return 1
end

function steps.stats()
  local reply = {}
  for _, each in ipairs(redis.call('ZRANGE', UNFINISHED, 0, -1)) do
    local counts = redis.call('HMGET', key('batch', each), 'state', 'total', 'completed', 'failed')
    if counts[1] then reply[#reply + 1] = counts end
  end
  return reply
end

return steps[step]()
