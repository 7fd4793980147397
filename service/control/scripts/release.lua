-- Refused while the log is ahead of the cursor, so that no request waits without an owner; a draining worker hands over instead.
-- KEYS record lease log; ARGV lease, 'idle' | 'handover'
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lost' end
local state, cursor = unpack(redis.call('HMGET', KEYS[1], 'state', 'cursor'))
local ahead = #redis.call('XRANGE', KEYS[3], '(' .. cursor, '+', 'COUNT', 1) > 0
if ahead and ARGV[2] == 'idle' then return 'ahead' end
redis.call('DEL', KEYS[2])
if state == 'active' then redis.call('HSET', KEYS[1], 'state', ahead and 'waiting' or 'idle') end
redis.call('HINCRBY', KEYS[1], 'version', 1)
return ahead and 'handed over' or 'ok'
