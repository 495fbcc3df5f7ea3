-- rate_limit: charge requests and tokens to a tenant, or return the time until the charge will be possible. Each tenant
-- has one token bucket for requests and one for tokens. A bucket holds the limit for one minute and refills at a
-- constant rate. A charge that is larger than the bucket is granted once the bucket is full and leaves the level
-- negative; otherwise, it would never be granted. An adjustment is always applied.
-- ARGV: tenant, requests per minute (0: no limit), tokens per minute (0: no limit), requests, tokens, 1 to adjust
-- Reply: {requests left, tokens left, ms until the charge is possible (0 if it was granted)}
-- Uses shared/base.lua: key, now.
local bucket, is_adjustment = key('rate', ARGV[1]), ARGV[6] == '1'
local names, longest, wait = {'requests', 'tokens'}, 60000, 0
local seen = tonumber(redis.call('HGET', bucket, 'at') or now)
local left = {}
for i, name in ipairs(names) do
  local per_minute, taken = tonumber(ARGV[1 + i]), tonumber(ARGV[3 + i])
  local level = math.min(per_minute,
    tonumber(redis.call('HGET', bucket, name) or per_minute) + math.max(now - seen, 0) * per_minute / 60000)
  left[i] = {level, taken, per_minute}
  if per_minute > 0 and taken > 0 and not is_adjustment then
    wait = math.max(wait, math.ceil((math.min(taken, per_minute) - level) * 60000 / per_minute))
  end
end
for i, name in ipairs(names) do
  local level, taken, per_minute = unpack(left[i])
  if per_minute > 0 then
    if wait == 0 then level = math.min(per_minute, level - taken) end
    redis.call('HSET', bucket, name, string.format('%.17g', level), 'at', now)
    longest = math.max(longest, math.ceil((per_minute - level) * 60000 / per_minute))
  end
  left[i] = math.floor(level)
end
redis.call('PEXPIRE', bucket, longest)
return {left[1], left[2], wait}
