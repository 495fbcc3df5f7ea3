-- read_job: read a job's state and the rest of its log without taking over its stream. If `is_read`,
-- sets `peeked`, so that the job is not cancelled as unread. If the job's controller has stopped sending beats, the job is reported as orphaned, and
-- the caller can attach to it.
-- ARGV: job, tenant, number of frames to skip, is_read (0 or 1)   Reply: {} or {state, outline, {frame...}, deadline,
--   digest of the model or ''}
-- Uses shared/base.lua: key, now, PREFIX.
local id, tenant = ARGV[1], ARGV[2]
local SILENT_MS = 3000
local state, owner_tenant, outline, owner, ends, weights =
  unpack(redis.call('HMGET', key('job', id), 'state', 'tenant', 'outline', 'controller', 'ends', 'weights'))
if owner_tenant ~= tenant or not outline then return {} end -- a deleted job has no outline
if ARGV[4] == '1' then redis.call('HSET', key('job', id), 'peeked', now) end
local seen = tonumber(redis.call('ZSCORE', PREFIX .. 'controllers', owner) or '0')
if state ~= 'done' and state ~= 'cancelled' and now - seen > SILENT_MS then state = 'orphaned' end
return {state, outline, redis.call('LRANGE', key('log', id), ARGV[3], -1), tonumber(ends), weights or ''}
