-- command: an operator's command to a worker, about its model. A worker has one command until that has finished; an
-- equal one, so also the same call sent twice, is that command.
-- ARGV: worker, id, packed ModelCommand   Reply: {} no such worker, {'ok' | 'busy', id of its command}
local worker, id, what = unpack(ARGV)
local lease = redis.call('ZSCORE', PREFIX .. 'workers', worker)
if not lease or tonumber(lease) <= now then return {} end
local command = key('order', worker)
local present, its_what = unpack(redis.call('HMGET', command, 'id', 'what'))
if present then return {its_what == what and 'ok' or 'busy', present} end
redis.call('HSET', command, 'id', id, 'what', what)
redis.call('PEXPIRE', command, COMMAND_MS)
return {'ok', id}
