-- Prolongs a key that is still ours. KEYS: the key. ARGV: our token, milliseconds. Returns whether it was ours.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
