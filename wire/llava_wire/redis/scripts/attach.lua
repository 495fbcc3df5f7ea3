-- attach: another controller takes over the stream of a tenant's job. Later frames are routed to it; the log so
-- far is the answer. `owner` counts take-overs, so that a controller that slept through one can tell. A new nonce makes
-- void every cancel that was meant for the readers before and is still on its way.
-- ARGV: job, tenant, controller, nonce
-- Answer: {}, {'cancelled'} or {state, owner, payload, ttl_ms, log, {digest, bytes...}}
local id, tenant, controller, nonce = unpack(ARGV)
local job = key('job', id)
local state, owner_tenant, old, number, payload, digests, ends =
  unpack(redis.call('HMGET', job, 'state', 'tenant', 'controller', 'owner', 'payload', 'digests', 'ends'))
if owner_tenant ~= tenant then return {} end
if state == 'cancelled' then return {state} end
local blobs = {}
if state ~= 'done' then
  for _, digest in ipairs(words(digests)) do
    local bytes = redis.call('GET', key('blob', digest))
    if bytes then
      blobs[#blobs + 1] = digest
      blobs[#blobs + 1] = bytes
    end
  end
  redis.call('HSET', job, 'nonce', nonce)
  if old ~= controller then
    number = math.max(now, number + 1) -- the time, so that it grows even where Redis went back
    redis.call('HSET', job, 'owner', number)
    own(id, controller)
    nudge(old, id)
  end
  if state == 'orphaned' then
    extend(job, ends - now + KEEP_MS)
    extend(key('log', id), ends - now + KEEP_MS)
    use_blobs(id, digests, ends - now + KEEP_MS)
    put_back(id, redis.call('HGET', job, 'length'))
  end
  see_controller(controller)
end
local frames = redis.call('LRANGE', key('log', id), 0, -1)
return {state, tonumber(number), payload or '', math.max(ends - now, 0), frames, blobs}
