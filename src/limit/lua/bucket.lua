-- What admit.lua and settle.lua share; put in front of both. The same arithmetic as bucket.rs.
-- A bucket is "balance capacity microsecond". A missing one is full.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Without a limit above 0 there is nothing to keep. The key may go when the bucket is full again.
local function keep(key, limit, capacity, balance)
  if limit == 0 then return end
  local full_in_ms = math.ceil((capacity - balance) / limit / 1000) + 1000
  redis.call('SET', key, string.format('%.0f %.0f %.0f', balance, capacity, now), 'PX', string.format('%.0f', full_in_ms))
end

-- What is kept of a bucket: balance, capacity, microsecond. Nothing, if it is missing.
local function stored(key)
  local text = redis.call('GET', key)
  if not text then return end
  local balance, held, at = string.match(text, '^(%S+) (%S+) (%S+)$')
  balance, held, at = tonumber(balance), tonumber(held), tonumber(at)
  if at then return balance, held, at end
end

-- The balance now, and whether it was counted against another capacity: then a decision keeps it as it is now, so that
-- the time from now on counts at the new limit.
local function balance_of(key, limit, capacity)
  local balance, held, at = stored(key)
  if not at then return capacity end
  if held ~= capacity then
    -- The limit has changed: what has passed was refilled at the old one, taken to have had the same burst.
    if capacity > 0 then
      balance = math.min(held, balance + math.max(0, now - at) * math.floor(limit * held / capacity))
    end
    if held == 0 then
      balance = capacity
    elseif balance > 0 then
      balance = math.floor(balance * (capacity / held))
    end
    return math.min(capacity, balance), true
  end
  -- A clock that was set back adds nothing, and starts to count again from where it is now.
  if at > now then keep(key, limit, capacity, math.min(capacity, balance)) end
  return math.min(capacity, balance + math.max(0, now - at) * limit)
end
