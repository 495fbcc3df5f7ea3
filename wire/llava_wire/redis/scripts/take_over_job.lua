-- take_over_job: let a controller take over the stream of a tenant's job. The reply contains the existing log, and
-- later frames are routed to this controller. `owner` is the epoch, which increases with each takeover, so that a
-- controller can detect takeovers that it missed. The new nonce invalidates late cancels intended for earlier readers.
-- ARGV: job, tenant, controller, nonce
-- Reply: {}, {'cancelled'} or {state, owner, payload, ttl_ms, log, {digest, bytes...}}
-- Uses shared/base.lua: key, split, now, request_resync, extend, KEEP_MS, touch_controller; shared/images.lua:
--   use_images; shared/fair_queue.lua: requeue; shared/jobs.lua: change_owner, count_job,
--   job_size, JOB_OVERHEAD.
local id, tenant, controller, nonce = unpack(ARGV)
local job = key('job', id)
delete_if_damaged(id)
local state, owner_tenant, old, epoch, payload, digests, ends =
  unpack(redis.call('HMGET', job, 'state', 'tenant', 'controller', 'owner', 'payload', 'digests', 'ends'))
if owner_tenant ~= tenant then return {} end
if state == 'cancelled' then return {state} end
local images = {}
if state ~= 'done' then
  for _, digest in ipairs(split(digests)) do
    local bytes = redis.call('GET', key('blob', digest))
    if bytes then
      images[#images + 1] = digest
      images[#images + 1] = bytes
    end
  end
  redis.call('HSET', job, 'nonce', nonce)
  if old ~= controller then
    epoch = math.max(now, epoch + 1) -- at least the current time, so that it increases even after data loss in Redis
    redis.call('HSET', job, 'owner', epoch)
    change_owner(id, controller)
    request_resync(old, id)
  end
  if state == 'orphaned' then
    extend(job, ends - now + KEEP_MS)
    extend(key('log', id), ends - now + KEEP_MS)
    use_images(id, tenant, digests, ends - now + KEEP_MS)
    count_job(id, tenant, job_size(id, JOB_OVERHEAD) + (redis.call('HGET', job, 'log_bytes') or 0), ends - now + KEEP_MS)
    requeue(id, redis.call('HGET', job, 'length'))
  end
  touch_controller(controller)
end
local frames = redis.call('LRANGE', key('log', id), 0, -1)
return {state, tonumber(epoch), payload or '', math.max(ends - now, 0), frames, images}
