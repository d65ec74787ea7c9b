-- Adds a batch of rejections, once, and makes sure that nothing that was acknowledged before has been lost.
-- KEYS: the hash; the marker with the number of the last batch of this process; the hash of what is hidden; who wrote last.
-- ARGV: number of this batch (0: only make sure), time to live of the hashes in ms, of the marker in ms, this process, and then
-- for every field: its name, what to add, what it must hold afterwards at the least, what of it is hidden.
-- Returns which process wrote before this one; nothing, if that is not known.
-- A batch whose answer was lost is sent again under its number, and then only looked at.

local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local fresh = tonumber(ARGV[1]) > last

-- First: should anything below fail, what was added must not be added again.
if fresh then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3]) end

for i = 5, #ARGV, 4 do
  local field, add, least, hidden = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local stored = string.match(redis.call('HGET', KEYS[1], field) or '0', '^%d+$')
  if stored and fresh and add ~= '0' then stored = redis.call('HINCRBY', KEYS[1], field, add) end
  -- What is no count is replaced.
  if not stored or tonumber(stored) < tonumber(least) then redis.call('HSET', KEYS[1], field, least) end
  if hidden ~= '0' then redis.call('HSET', KEYS[3], field, hidden) end
end

redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
local before = redis.call('GET', KEYS[4])
redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[3])
return before
