-- submit: put one job into its model's waiting room, with the pixels it brings. A full room, a tenant over its
-- limits, too many bytes of pixels, and pixels that nobody has, are answered before anything of the job is written,
-- with the milliseconds until a place should be free (0: not known). The same call sent twice finds its nonce and says
-- 'ok', without its place; the same job under another nonce is 'known' (unless it was cancelled: then it begins anew), with other contents
-- a 'duplicate'. `weight` is the tenant's share beside others'.
-- ARGV: job, controller, tenant, model, cost, payload, ttl_ms, digests, priority, nonce, outline, trace, weight, max_queued,
--   max_queued_cost, max_tenant_jobs, max_tenant_cost, max_pixel_bytes, (digest, bytes)...
-- Answer: {'ok', jobs that wait already, milliseconds until these are worked off (0: not known)} or why not
local id, controller, tenant, model, cost, payload = unpack(ARGV, 1, 6)
local ttl, digests, priority, nonce = tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9]), ARGV[10]
local max_queued, max_queued_cost = tonumber(ARGV[14]), tonumber(ARGV[15])
local max_tenant_jobs, max_tenant_cost, max_bytes = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[18])
cost = tonumber(cost)

-- Drops pixels that no live job uses, soonest to expire first, until the new ones fit; nil, or the bytes in use.
local function make_room()
  local need = 0
  for i = 19, #ARGV, 2 do
    if redis.call('EXISTS', key('blob', ARGV[i])) == 0 then need = need + #ARGV[i + 1] end
  end
  if need == 0 then return nil end
  forget_expired_blobs()
  local used = tonumber(redis.call('GET', PIXEL_BYTES) or '0')
  if used + need <= max_bytes then return nil end
  for _, entry in ipairs(redis.call('ZRANGE', PIXELS, 0, 1023)) do
    local digest, size = string.match(entry, '^(%S+) (%d+)$')
    if redis.call('SCARD', key('users', digest)) == 0 then
      uncount(entry)
      redis.call('DEL', key('blob', digest))
      used = used - size
      if used + need <= max_bytes then return nil end
    end
  end
  return used
end

-- Milliseconds until so much cost is worked off, at the rate of the last minute.
local function wait_for(load)
  local pace = rate(model)
  return pace and math.ceil(load * 1000 / pace) or 0
end

local function refusal()
  local waiting, backlog = num_waiting(model), tonumber(redis.call('GET', key('backlog', model)) or '0')
  if waiting >= max_queued then return {'full', waiting, wait_for(backlog / waiting)} end
  if waiting > 0 and backlog + cost > max_queued_cost then
    return {'heavy', math.ceil(backlog), wait_for(backlog + cost - max_queued_cost)}
  end
  local held, load = 0, 0
  for _, each in ipairs(redis.call('HVALS', key('tenant', tenant))) do held, load = held + 1, load + tonumber(each) end
  if held >= max_tenant_jobs then return {'tenant', held, wait_for(load / held)} end
  if held > 0 and load + cost > max_tenant_cost then
    return {'tenant_cost', math.ceil(load), wait_for(load + cost - max_tenant_cost)}
  end
  local used = make_room()
  return used and {'bytes', used, wait_for(cost)}
end

local known, state, former = unpack(redis.call('HMGET', key('job', id), 'print', 'state', 'nonce'))
if known and former == nonce then return {'ok'} end
if known and state ~= 'cancelled' then return {known == redis.sha1hex(payload) and 'known' or 'duplicate'} end
local refused = refusal()
if refused then return refused end
local ahead, work = num_waiting(model), tonumber(redis.call('GET', key('backlog', model)) or '0')
local place = {'ok', ahead, wait_for(work)}
store_blobs(19, ttl + KEEP_MS)
local missing = missing_blobs(digests)
if #missing > 0 then return {'pixels', missing} end

-- Without need no DEL: where memory is short Redis refuses a script at its first write, if that writes more.
if known then redis.call('DEL', key('job', id), key('log', id)) end
make_job(fair_score(model, tenant, priority, cost / tonumber(ARGV[13])), 0, 0, 1)
see_controller(controller)
put_back(id, 0)
return place
