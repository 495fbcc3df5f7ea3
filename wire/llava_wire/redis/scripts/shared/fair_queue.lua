-- The fair queue: start-time fair queueing between tenants, with three priorities and a quarantine per model.
-- Each job waits in the queue for its model and priority. Jobs in a queue are ordered by score in virtual time.
-- `doubts` is the number of worker crashes that occurred while the job was running, counted since the job was last
-- cleared. Once `doubts` reaches QUARANTINE_CRASHES, the job waits in quarantine and runs alone. For aging, `since`
-- contains the arrival times of jobs with normal or low priority. `backlog` is the total cost of all waiting jobs.
-- Uses shared/base.lua: key, extend, now, delete_if_damaged, wake.
local QUEUES = {'wait-high', 'wait', 'wait-low'}
local QUARANTINE = 'suspects'
local QUARANTINE_CRASHES = 2
local MAX_EXCUSED = 4 -- number of crashes of a job after which crashes of several workers at the same time count as well
local QUARANTINE_PAUSE_MS = 2000 -- after a quarantined job, other waiting jobs are served for this time
local FAIR_MS = 3600000
local SERVED_MS, NUM_SERVED = 10000, 6

local function queue_of(priority, doubts)
  if tonumber(doubts or 0) >= QUARANTINE_CRASHES then return QUARANTINE end
  return priority > 0 and QUEUES[1] or priority < 0 and QUEUES[3] or QUEUES[2]
end

local function num_queued(model)
  local count = 0
  for _, queue in ipairs(QUEUES) do count = count + redis.call('ZCARD', key(queue, model)) end
  return count
end

local function num_waiting(model) return num_queued(model) + redis.call('ZCARD', key(QUARANTINE, model)) end

-- Returns the virtual time in tokens: the highest score served so far. Each arrival also advances it slightly, so that
-- otherwise equal jobs are served in order of arrival. If the value was lost, the lowest score of the waiting jobs
-- replaces it. Otherwise, all new jobs would precede the waiting ones.
local function virtual_time(model)
  local stored = redis.call('GET', key('clock', model))
  if stored then return tonumber(stored) end
  local lowest = nil
  for _, queue in ipairs(QUEUES) do
    local first = redis.call('ZRANGE', key(queue, model), 0, 0, 'WITHSCORES')[2]
    if first and (not lowest or tonumber(first) < lowest) then lowest = tonumber(first) end
  end
  return lowest or 0
end

local function set_virtual_time(model, value)
  local life = FAIR_MS
  for _, queue in ipairs(QUEUES) do life = math.max(life, redis.call('PTTL', key(queue, model))) end
  redis.call('SET', key('clock', model), string.format('%.17g', value), 'PX', life)
end

local function arrival_time(model)
  local virtual = virtual_time(model) + 0.001
  set_virtual_time(model, virtual)
  return string.format('%.17g', virtual)
end

-- Returns the score of a new job. In start-time fair queueing, a job starts where the tenant's previous job with the
-- same priority ends. `cost` must already be divided by the tenant's weight.
local function fair_score(model, tenant, priority, cost)
  local fair, member = key('fair', model), queue_of(priority) .. ' ' .. tenant
  local score = math.max(tonumber(arrival_time(model)), tonumber(redis.call('ZSCORE', fair, member) or '0'))
  redis.call('ZADD', fair, score + cost, member)
  extend(fair, FAIR_MS)
  return string.format('%.17g', score)
end

-- Starts the time in which no quarantined job is assigned while other jobs wait.
local function pause_quarantine(model) redis.call('SET', key('trial', model), '1', 'PX', QUARANTINE_PAUSE_MS) end

-- Returns a job to its previous position in the queue. `length` is the length of the job's log in tokens.
local function requeue(id, length)
  local job = key('job', id)
  delete_if_damaged(id)
  local model, score, cost, priority, doubts =
    unpack(redis.call('HMGET', job, 'model', 'score', 'cost', 'priority', 'doubts'))
  if not model then return end -- expired
  redis.call('HSET', job, 'state', 'queued', 'assignment', '', 'worker', '', 'length', length, 'queued_at', now)
  local life, name = redis.call('PTTL', job), queue_of(tonumber(priority), doubts)
  local queue, backlog, since = key(name, model), key('backlog', model), key('since', model)
  if redis.call('ZADD', queue, score, id) == 1 then redis.call('INCRBYFLOAT', backlog, cost) end
  extend(queue, life)
  extend(backlog, life)
  if name == QUEUES[2] or name == QUEUES[3] then
    redis.call('ZADD', since, 'NX', now, id)
    extend(since, life)
  end
  wake(model)
end

-- Withdraws the doubt that arose when a worker crashed, after it has become clear that the job was not the cause. A job
-- in quarantine returns to the normal queue.
local function withdraw_doubt(id)
  local job = key('job', id)
  local doubts, crashes, state, length = unpack(redis.call('HMGET', job, 'doubts', 'crashes', 'state', 'length'))
  if not doubts or not crashes or tonumber(doubts) == 0 or tonumber(crashes) > MAX_EXCUSED then return end
  redis.call('HINCRBY', job, 'doubts', -1)
  local model, cost = unpack(redis.call('HMGET', job, 'model', 'cost'))
  if state == 'queued' and redis.call('ZREM', key(QUARANTINE, model), id) == 1 then
    redis.call('INCRBYFLOAT', key('backlog', model), -cost) -- requeue adds it again
    requeue(id, length)
  end
end

-- Updates the backlog after a job has left its queue. When no jobs are left, the backlog is reset to exactly zero.
local function subtract_backlog(model, id, cost)
  redis.call('ZREM', key('since', model), id)
  if num_waiting(model) == 0 then return redis.call('DEL', key('backlog', model), key('since', model)) end
  local backlog = redis.call('INCRBYFLOAT', key('backlog', model), -cost)
  if tonumber(backlog) < 0 then redis.call('SET', key('backlog', model), 0, 'KEEPTTL') end -- the counter was lost
  return 1
end

local function dequeue(id, model, cost)
  local removed = redis.call('ZREM', key(QUARANTINE, model), id)
  for _, queue in ipairs(QUEUES) do removed = removed + redis.call('ZREM', key(queue, model), id) end
  if removed > 0 then subtract_backlog(model, id, cost) end
end

-- Returns the first waiting job of a tenant that has fewer jobs on the worker than half of an equal share, and the queue
-- of that job. Searches only the highest-priority queue that is not empty. `slots` is the worker's `inflight` hash as
-- returned by HGETALL.
local NUM_CANDIDATES = 64 -- with equal costs, the first job of each tenant is near the front
local function find_overflow(model, slots)
  for _, name in ipairs(QUEUES) do
    local queue, num_jobs, num_tenants = key(name, model), {}, 0
    local ids = redis.call('ZRANGE', queue, 0, NUM_CANDIDATES - 1)
    for i = 1, #ids > 0 and #slots or 0, 2 do
      local tenant = redis.call('HGET', key('job', slots[i]), 'tenant') or ''
      if not num_jobs[tenant] then num_tenants = num_tenants + 1 end
      num_jobs[tenant] = (num_jobs[tenant] or 0) + 1
    end
    for _, id in ipairs(ids) do
      local own = num_jobs[redis.call('HGET', key('job', id), 'tenant') or '']
      if not own or 2 * own * num_tenants < #slots / 2 then return id, queue end
    end
    if #ids > 0 then return nil end
  end
end

-- Adds the cost of a finished job to the current ten-second bucket. `service_rate` is computed from these buckets.
local function count_served(model, cost)
  local bucket = key('served', model .. ':' .. math.floor(now / SERVED_MS))
  redis.call('INCRBYFLOAT', bucket, cost)
  redis.call('PEXPIRE', bucket, (NUM_SERVED + 1) * SERVED_MS)
end

-- Returns the cost served per second over the last minute, or nil if nothing was served.
local function service_rate(model)
  local sum, oldest, last = 0, nil, math.floor(now / SERVED_MS)
  for bucket = last, last - NUM_SERVED, -1 do
    local served = redis.call('GET', key('served', model .. ':' .. bucket))
    if served then sum, oldest = sum + tonumber(served), bucket end
  end
  return oldest and sum * 1000 / math.max(now - oldest * SERVED_MS, 1000)
end
