-- Decides on one request and takes it, in one step, on this server's clock.
-- KEYS: the buckets for requests and for tokens. ARGV: limit and capacity of each, in the same order; an empty limit: none.
-- Returns the two balances as they were before this request, in parts; an empty string where there is no limit.
-- The rule is that of decide() in memory.rs; a refused request writes nothing, unless its limit has changed.

local PARTS = 60000000
local rpm_limit, rpm_capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local tpm_limit, tpm_capacity = tonumber(ARGV[3]), tonumber(ARGV[4])
local requests, tokens, changed

if rpm_limit then
  requests, changed = balance_of(KEYS[1], rpm_limit, rpm_capacity)
  if changed then keep(KEYS[1], rpm_limit, rpm_capacity, requests) end
end
if tpm_limit then
  tokens, changed = balance_of(KEYS[2], tpm_limit, tpm_capacity)
  if changed then keep(KEYS[2], tpm_limit, tpm_capacity, tokens) end
end

if requests and requests >= PARTS and (not tokens or tokens >= 1) then
  keep(KEYS[1], rpm_limit, rpm_capacity, requests - PARTS)
end

return {requests and string.format('%.0f', requests) or '', tokens and string.format('%.0f', tokens) or ''}
