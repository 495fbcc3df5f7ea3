-- beat: the worker's process lives. Renews its lease and its announcement.
-- ARGV: worker, lease_ms, heartbeat
redis.call('ZADD', PREFIX .. 'workers', now + tonumber(ARGV[2]), ARGV[1])
redis.call('SET', key('heartbeat', ARGV[1]), ARGV[3], 'PX', ARGV[2])
return 1
