-- send_command: store an operator's command for a worker (load or unload a model). A worker can have only one pending
-- command. If an equal command is already pending, for example because the call was repeated, its ID is returned. A
-- different command is rejected as 'busy'.
-- ARGV: worker, ID, packed ModelCommand   Reply: {} (no such worker) or {'ok' | 'busy', ID of the pending command}
-- Uses shared/base.lua: PREFIX, now, key, COMMAND_MS.
local worker, id, what = unpack(ARGV)
local lease = redis.call('ZSCORE', PREFIX .. 'workers', worker)
if not lease or tonumber(lease) <= now then return {} end
local command = key('order', worker)
local pending_id, pending_what = unpack(redis.call('HMGET', command, 'id', 'what'))
if pending_id then return {pending_what == what and 'ok' or 'busy', pending_id} end
redis.call('HSET', command, 'id', id, 'what', what)
redis.call('PEXPIRE', command, COMMAND_MS)
return {'ok', id}
