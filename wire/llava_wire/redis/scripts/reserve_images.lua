-- reserve_images: count images that a controller is about to put into the image store, and create or extend references
-- to them. Images that no live job uses are dropped to make room. If there is no room, no reference is created.
-- ARGV: tenant, ttl_ms, max_pixel_bytes, (digest, size)...
-- Reply: {{dropped digest...}, 'ok'}, or the dropped digests and then the reply of `submit` if there is no space. The
--   controller deletes the dropped images from the image store.
-- Uses shared/base.lua: key, KEEP_MS; shared/images.lua: drop_images, extend_image; shared/budget.lua: budget.
local FIRST_IMAGE = 4
local tenant, ttl, max_bytes = ARGV[1], ARGV[2] + KEEP_MS, tonumber(ARGV[3])

local needed, is_kept = 0, {}
for i = FIRST_IMAGE, #ARGV, 2 do
  is_kept[ARGV[i]] = true
  if redis.call('EXISTS', key('ref', ARGV[i])) == 0 then needed = needed + ARGV[i + 1] end
end
local dropped, scope, used, limit = drop_images(tenant, is_kept, needed, max_bytes)
if scope then return {dropped, 'bytes', used, 0, 'pixel', scope, needed, limit} end
local space = budget('pixel', tenant)
for i = FIRST_IMAGE, #ARGV, 2 do
  redis.call('SET', key('ref', ARGV[i]), ARGV[i + 1], 'KEEPTTL')
  extend_image(space, ARGV[i], ttl)
end
return {dropped, 'ok'}
