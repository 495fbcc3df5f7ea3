-- Budgets of stored data. Each kind of object ('file', 'job', 'pixel', 'response') has one budget, which counts bytes per
-- tenant and in total. `{kind}s` contains one entry 'id size' per object, ordered by expiry time, and `{kind}_bytes` is
-- the sum of the sizes. `{kind}s:{tenant}` and `{kind}_bytes:{tenant}` are the same for the objects of one tenant.
-- Uses shared/base.lua: PREFIX, key, now, extend, repair_sum.
local EXPIRED_PER_CALL = 256

-- Removes an entry and subtracts its size from the total.
local function discount(entries, total, entry)
  if redis.call('ZREM', entries, entry) == 1 then redis.call('DECRBY', total, string.match(entry, ' (%d+)$')) end
end

local function discount_expired(entries, total)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', entries, '-inf', now, 'LIMIT', 0, EXPIRED_PER_CALL)) do
    discount(entries, total, entry)
  end
end

-- Discounts the expired objects of all tenants.
local function discount_all_expired()
  for _, kind in ipairs({'file', 'job', 'pixel', 'response'}) do
    local entries, total = PREFIX .. kind .. 's', PREFIX .. kind .. '_bytes'
    repair_sum(entries, total)
    discount_expired(entries, total)
  end
end

local budgets = {} -- those that this call of the script has used

local function budget(kind, tenant)
  local name = kind .. ' ' .. tenant
  if budgets[name] then return budgets[name] end
  local all, all_bytes = PREFIX .. kind .. 's', PREFIX .. kind .. '_bytes'
  local own, own_bytes = key(kind .. 's', tenant), key(kind .. '_bytes', tenant)
  local self = {entries = own, all_entries = all}
  budgets[name] = self
  repair_sum(all, all_bytes)
  repair_sum(own, own_bytes)

  -- Counts an object until `ttl` ms from now. Repeated calls change only the expiry time.
  function self.add(id, size, ttl)
    local entry = id .. ' ' .. size
    if redis.call('ZADD', all, now + ttl, entry) == 1 then redis.call('INCRBY', all_bytes, size) end
    if redis.call('ZADD', own, now + ttl, entry) == 1 then redis.call('INCRBY', own_bytes, size) end
    extend(own, ttl)
    extend(own_bytes, ttl)
  end

  function self.remove(id, size)
    discount(all, all_bytes, id .. ' ' .. size)
    discount(own, own_bytes, id .. ' ' .. size)
  end

  -- Returns the total size of the objects of the tenant, and the total size of the objects of all tenants.
  function self.usage()
    discount_expired(all, all_bytes)
    discount_expired(own, own_bytes)
    return tonumber(redis.call('GET', own_bytes) or '0'), tonumber(redis.call('GET', all_bytes) or '0')
  end

  -- Returns nil if the tenant may store `size` more bytes. Otherwise, returns 'tenant' (if it has reached `max_tenant` or
  -- its share, or uses more than half of the bytes in use) or 'all', the number of bytes in use and the limit. The share
  -- of a tenant is the number of bytes that are free. n tenants that store as much as they can therefore leave 1/(n + 1)
  -- of the budget to others (the dynamic thresholds of Choudhury and Hahne, 1998).
  function self.exceeded(size, max_tenant, max_all)
    local held, used = self.usage()
    local limit = math.min(max_tenant, max_all - used)
    if held + size <= limit then return nil end
    local is_own = held + size > max_tenant or held * 2 > used or used + size <= max_all
    if is_own then return 'tenant', held, limit end
    return 'all', used, max_all
  end

  -- Returns the ID, size and expiry time of the object that expires first, of the tenant or (if `is_any`) of any
  -- tenant.
  function self.oldest(is_any)
    local entry, expiry = unpack(redis.call('ZRANGE', is_any and all or own, 0, 0, 'WITHSCORES'))
    if not entry then return end
    local id, size = string.match(entry, '^(%S+) (%d+)$')
    return id, size, tonumber(expiry)
  end

  return self
end
