-- order: what a worker shall do with its model. It has one order until that is settled; the same one again, so also
-- the same call sent twice, is that order.
-- ARGV: worker, id, packed Instruction   Answer: {} no such worker, {'ok' | 'busy', id of its order}
local worker, id, what = unpack(ARGV)
local lease = redis.call('ZSCORE', PREFIX .. 'workers', worker)
if not lease or tonumber(lease) <= now then return {} end
local order = key('order', worker)
local present, its_what = unpack(redis.call('HMGET', order, 'id', 'what'))
if present then return {its_what == what and 'ok' or 'busy', present} end
redis.call('HSET', order, 'id', id, 'what', what)
redis.call('PEXPIRE', order, ORDER_MS)
return {'ok', id}
