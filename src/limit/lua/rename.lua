-- Moves counts to other field names, adding them up, in one step: what one instance has moved, no other finds.
-- KEYS: the hash to move from; the hash to move to (it may be the same). ARGV: days to live in ms of the hash moved to, and
-- then pairs of field names, from and to. Counts that are not whole numbers stay where they are.

for i = 2, #ARGV, 2 do
  local count = redis.call('HGET', KEYS[1], ARGV[i])
  if count and string.match(count, '^%d+$') then
    redis.call('HINCRBY', KEYS[2], ARGV[i + 1], count)
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return redis.status_reply('OK')
