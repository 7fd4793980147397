-- Let a World whose end was not certain go on, from a segment that somebody chose or all that lead on by now.
-- KEYS record manifest; ARGV tip, number of record values, these, then manifest entries added
local state, tip = unpack(redis.call('HMGET', KEYS[1], 'state', 'tip'))
if state ~= 'failed' or tip ~= ARGV[1] then return 0 end
local last = 2 + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 3, last))
for first = last + 1, #ARGV, 1000 do redis.call('RPUSH', KEYS[2], unpack(ARGV, first, math.min(first + 999, #ARGV))) end
redis.call('HSET', KEYS[1], 'state', 'idle', 'error', '')
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
