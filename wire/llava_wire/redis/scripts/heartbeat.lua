-- heartbeat: renew a worker's lease, store its heartbeat and return its pending command. If that command has finished,
-- it is deleted instead.
-- ARGV: worker, lease_ms, heartbeat, ID of the finished command or '', model, digest of the model, seconds per engine
--   step (0: unknown)
-- Reply: {} or {ID, packed ModelCommand}
-- Uses shared/base.lua: key, PREFIX, now, COMMAND_MS.
local command = key('order', ARGV[1])
redis.call('ZADD', PREFIX .. 'workers', now + tonumber(ARGV[2]), ARGV[1])
redis.call('SET', key('heartbeat', ARGV[1]), ARGV[3], 'PX', ARGV[2])
local digests = key('digests', ARGV[5])
redis.call('ZADD', digests, now + tonumber(ARGV[2]), ARGV[6])
redis.call('ZREMRANGEBYSCORE', digests, '-inf', now)
redis.call('PEXPIRE', digests, ARGV[2])
local steps = key('steps', ARGV[5])
if tonumber(ARGV[7]) > 0 then redis.call('ZADD', steps, ARGV[7], ARGV[1]) else redis.call('ZREM', steps, ARGV[1]) end
redis.call('PEXPIRE', steps, ARGV[2])
local id, what = unpack(redis.call('HMGET', command, 'id', 'what'))
if not id then return {} end
if id == ARGV[4] then
  redis.call('DEL', command)
  return {}
end
redis.call('PEXPIRE', command, COMMAND_MS)
return {id, what}
