-- Takes what was consumed already: the tokens of finished requests, and what a replica let pass while it could not ask.
-- KEYS: the buckets for requests and for tokens. ARGV: limit, capacity, amount (in parts) and floor of each, in the same
-- order; an empty limit: none. An amount of 0 only looks.
-- Returns the two balances as they are afterwards, in parts; an empty string where there is no limit.

local function settle(key, limit, capacity, amount, floor)
  limit = tonumber(limit)
  if not limit then return '' end
  capacity, amount, floor = tonumber(capacity), tonumber(amount), tonumber(floor)
  local balance = balance_of(key, limit, capacity)
  if amount > 0 then
    balance = math.max(balance - amount, math.min(balance, floor))
    keep(key, limit, capacity, balance)
  end
  return string.format('%.0f', balance)
end

return {settle(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]), settle(KEYS[2], ARGV[5], ARGV[6], ARGV[7], ARGV[8])}
