-- Budgets of stored data. Each kind of object ('file', 'response') has one budget, which counts bytes per tenant and in
-- total. `{kind}s` contains one entry 'id size' per object, ordered by expiry time, and `{kind}_bytes` is the sum of the
-- sizes. `{kind}s:{tenant}` and `{kind}_bytes:{tenant}` are the same for the objects of one tenant.
-- Uses shared/base.lua: PREFIX, key, now, extend, repair_sum.
local EXPIRED_PER_CALL = 256

local function budget(kind, tenant)
  local all, all_bytes = PREFIX .. kind .. 's', PREFIX .. kind .. '_bytes'
  local own, own_bytes = key(kind .. 's', tenant), key(kind .. '_bytes', tenant)
  local self = {entries = own}
  repair_sum(all, all_bytes)
  repair_sum(own, own_bytes)

  local function discount(entries, total, entry)
    if redis.call('ZREM', entries, entry) == 1 then redis.call('DECRBY', total, string.match(entry, ' (%d+)$')) end
  end

  local function discount_expired(entries, total)
    for _, entry in ipairs(redis.call('ZRANGEBYSCORE', entries, '-inf', now, 'LIMIT', 0, EXPIRED_PER_CALL)) do
      discount(entries, total, entry)
    end
  end

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

  -- Returns the number of objects of the tenant, their total size, and the total size of the objects of all tenants.
  function self.usage()
    discount_expired(all, all_bytes)
    discount_expired(own, own_bytes)
    return redis.call('ZCARD', own), tonumber(redis.call('GET', own_bytes) or '0'),
      tonumber(redis.call('GET', all_bytes) or '0')
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
