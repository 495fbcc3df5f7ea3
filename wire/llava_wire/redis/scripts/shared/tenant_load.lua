-- The live jobs of each tenant, for the limits on their number and cost. `tenant:{tenant}` maps each job to its cost, and
-- `load:{tenant}` is the string 'number of jobs, total cost', so that a submit does not read the costs of all jobs. If
-- the string was lost, or its number of jobs differs from the size of the hash, it is computed again from the hash. This
-- also happens once per LOAD_MS, in case a release that does not update the string writes to the same hash.
-- Uses shared/base.lua: key, extend.
local LOAD_MS = 600000

local function read_load(tenant)
  local num_jobs, cost = string.match(redis.call('GET', key('load', tenant)) or '', '^(%d+) (%S+)$')
  return tonumber(num_jobs), tonumber(cost)
end

local function write_load(tenant, num_jobs, cost, ...)
  redis.call('SET', key('load', tenant), string.format('%d %.17g', num_jobs, cost), ...)
end

-- Adds to the string if it exists.
local function add_to_load(tenant, num_jobs, cost)
  local old_jobs, old_cost = read_load(tenant)
  if old_jobs then write_load(tenant, old_jobs + num_jobs, old_cost + cost, 'KEEPTTL') end
end

-- Returns the number of live jobs of a tenant and their total cost.
local function tenant_load(tenant)
  local num_jobs, cost = read_load(tenant)
  local size = redis.call('HLEN', key('tenant', tenant))
  if num_jobs == size then return num_jobs, cost end
  cost = 0
  for _, job_cost in ipairs(redis.call('HVALS', key('tenant', tenant))) do cost = cost + tonumber(job_cost) end
  write_load(tenant, size, cost, 'PX', LOAD_MS)
  return size, cost
end

local function add_tenant_job(tenant, id, cost, ttl)
  local jobs = key('tenant', tenant)
  local old_cost = redis.call('HGET', jobs, id)
  redis.call('HSET', jobs, id, cost)
  extend(jobs, ttl)
  add_to_load(tenant, old_cost and 0 or 1, cost - (old_cost or 0))
end

local function remove_tenant_job(tenant, id)
  local jobs = key('tenant', tenant)
  local cost = redis.call('HGET', jobs, id)
  if not cost then return end
  redis.call('HDEL', jobs, id)
  add_to_load(tenant, -1, -cost)
end
