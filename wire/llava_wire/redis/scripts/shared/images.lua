-- Preprocessed images, stored once per digest. `pixels` contains one entry 'digest size' per image, ordered by expiry
-- time. `pixel_bytes` is the sum of the sizes, and `users:{digest}` contains the live jobs that need the image. An
-- image that no live job needs may be dropped before it expires.
-- Uses shared/base.lua: PREFIX, split, key, now, extend, repair_sum.
local PIXELS, PIXEL_BYTES = PREFIX .. 'pixels', PREFIX .. 'pixel_bytes'

local function missing_images(digests)
  local missing = {}
  for _, digest in ipairs(split(digests)) do
    if redis.call('EXISTS', key('blob', digest)) == 0 then missing[#missing + 1] = digest end
  end
  return missing
end

-- Removes an entry from `pixels` and subtracts its size from `pixel_bytes`.
local function discount_image(entry)
  local _, size = string.match(entry, '^(%S+) (%d+)$')
  if redis.call('ZREM', PIXELS, entry) == 1 then redis.call('DECRBY', PIXEL_BYTES, size) end
end

local function discount_expired_images()
  repair_sum(PIXELS, PIXEL_BYTES)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', PIXELS, '-inf', now, 'LIMIT', 0, 256)) do discount_image(entry) end
end

local function extend_image(digest, ttl)
  local name = key('blob', digest)
  extend(name, ttl)
  local size = redis.call('STRLEN', name)
  if size == 0 then return end
  if redis.call('ZADD', PIXELS, now + redis.call('PTTL', name), digest .. ' ' .. size) == 1 then
    redis.call('INCRBY', PIXEL_BYTES, size)
  end
end

-- Stores the (digest, bytes) pairs in ARGV that start at index `first`.
local function store_images(first, ttl)
  for i = first, #ARGV, 2 do
    redis.call('SET', key('blob', ARGV[i]), ARGV[i + 1], 'KEEPTTL')
    extend_image(ARGV[i], ttl)
  end
end

local function use_images(id, digests, ttl)
  for _, digest in ipairs(split(digests)) do
    extend_image(digest, ttl)
    redis.call('SADD', key('users', digest), id)
    extend(key('users', digest), ttl)
  end
end
