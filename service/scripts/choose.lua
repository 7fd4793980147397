-- Let a World whose end was not certain go on from a segment that somebody chose.
-- KEYS record manifest; ARGV tip, manifest entry, then the record's fields and values
local state, tip = unpack(redis.call('HMGET', KEYS[1], 'state', 'tip'))
if state ~= 'failed' or tip ~= ARGV[1] then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('HSET', KEYS[1], 'state', 'idle', 'error', '')
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
