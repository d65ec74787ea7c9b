-- Takes what was consumed already: the tokens of finished requests, and what a replica let pass while it could not ask.
-- KEYS: the buckets for requests and for tokens. ARGV: limit, capacity, amount (in parts) and the most minutes of
-- refill that may be owed of each, in the same order; an empty limit: none. An amount of 0 only looks.
-- Returns the two balances as they are afterwards, in parts; an empty string where there is no limit.

-- The bucket may have another limit than this replica knows, which has not heard of a change yet, or first. Only a
-- decision changes it: in a bucket that is scaled there and back, what is taken counts by the ratio of the limits.
local function take(key, limit, capacity, amount, minutes)
  local _, held = stored(key)
  if held and held ~= capacity and capacity > 0 then
    -- As in balance_of, but never none.
    limit, capacity = math.max(1, math.floor(limit * held / capacity)), held
  end
  local balance = balance_of(key, limit, capacity)
  -- Callers read a balance as a whole number of 64 bits.
  local floor = math.max(-2 ^ 63, -limit * 60000000 * minutes)
  keep(key, limit, capacity, math.max(balance - amount, math.min(balance, floor)))
end

local function settle(key, limit, capacity, amount, minutes)
  limit = tonumber(limit)
  if not limit then return '' end
  capacity, amount, minutes = tonumber(capacity), tonumber(amount), tonumber(minutes)
  if amount > 0 then take(key, limit, capacity, amount, minutes) end
  return string.format('%.0f', (balance_of(key, limit, capacity)))
end

return {settle(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]), settle(KEYS[2], ARGV[5], ARGV[6], ARGV[7], ARGV[8])}
