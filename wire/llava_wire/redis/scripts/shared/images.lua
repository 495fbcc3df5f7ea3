-- Preprocessed images, stored once per digest. `users:{digest}` contains the live jobs that need the image. An image that
-- no live job needs may be dropped before it expires. The budget 'pixel' counts the images: `pixels` contains one entry
-- 'digest size' per image, and `pixels:{tenant}` one per image that a job of the tenant has used. An image used by
-- several tenants counts once in total, and once for each of them.
-- `blob:{digest}` contains the image. If it is in a separate image store, `ref:{digest}` contains its size instead.
-- Uses shared/base.lua: key, split, extend; shared/budget.lua: budget.
local MAX_DROPPED = 1024 -- maximum number of entries that one call examines to make room

local function missing_images(digests)
  local missing = {}
  for _, digest in ipairs(split(digests)) do
    if redis.call('EXISTS', key('blob', digest), key('ref', digest)) == 0 then missing[#missing + 1] = digest end
  end
  return missing
end

-- Extends the TTL of an image or its reference, and counts the image for the tenant.
local function extend_image(space, digest, ttl)
  local name = key('blob', digest)
  local size = redis.call('STRLEN', name)
  if size == 0 then
    name = key('ref', digest)
    size = redis.call('GET', name)
  end
  if not size then return end
  extend(name, ttl)
  space.add(digest, size, redis.call('PTTL', name))
end

-- Stores the (digest, bytes) pairs in ARGV that start at index `first`.
local function store_images(tenant, first, ttl)
  if first > #ARGV then return end
  local space = budget('pixel', tenant)
  for i = first, #ARGV, 2 do
    redis.call('SET', key('blob', ARGV[i]), ARGV[i + 1], 'KEEPTTL')
    extend_image(space, ARGV[i], ttl)
  end
end

local function use_images(id, tenant, digests, ttl)
  if digests == '' then return end
  local space = budget('pixel', tenant)
  for _, digest in ipairs(split(digests)) do
    extend_image(space, digest, ttl)
    redis.call('SADD', key('users', digest), id)
    extend(key('users', digest), ttl)
  end
end

-- Drops images that no live job uses, in order of expiry, first those of the tenant, until the tenant may store `needed`
-- more bytes. Keeps the images in `is_kept`. Returns the digests of the dropped images and nil on success. Otherwise,
-- returns the digests and the values of `exceeded` in shared/budget.lua.
local function drop_images(tenant, is_kept, needed, max_bytes)
  local dropped, space = {}, budget('pixel', tenant)
  if needed == 0 or not space.exceeded(needed, max_bytes, max_bytes) then return dropped end
  for _, entries in ipairs({space.entries, space.all_entries}) do
    for _, entry in ipairs(redis.call('ZRANGE', entries, 0, MAX_DROPPED - 1)) do
      local digest, size = string.match(entry, '^(%S+) (%d+)$')
      if not is_kept[digest] and redis.call('SCARD', key('users', digest)) == 0 then
        redis.call('DEL', key('blob', digest), key('ref', digest))
        space.remove(digest, size)
        dropped[#dropped + 1] = digest
        if not space.exceeded(needed, max_bytes, max_bytes) then return dropped end
      end
    end
  end
  return dropped, space.exceeded(needed, max_bytes, max_bytes)
end

-- Makes room for the pairs in ARGV that start at index `first`, and keeps the images in `digests`. Returns nil on
-- success. Otherwise, returns the values of `exceeded` in shared/budget.lua and the number of bytes needed.
local function make_room_for_images(tenant, digests, first, max_bytes)
  local needed, is_kept = 0, {}
  for _, digest in ipairs(split(digests)) do is_kept[digest] = true end
  for i = first, #ARGV, 2 do
    if redis.call('EXISTS', key('blob', ARGV[i])) == 0 then needed = needed + #ARGV[i + 1] end
  end
  if needed == 0 then return nil end
  local _, scope, used, limit = drop_images(tenant, is_kept, needed, max_bytes)
  return scope, used, limit, needed
end
