-- What a sweeper should do about a session; for one that is owned, the milliseconds left to its lease. KEYS record lease log
local state, cursor = unpack(redis.call('HMGET', KEYS[1], 'state', 'cursor'))
if not state then return {'unknown'} end
if state == 'deleted' or state == 'failed' then return {state} end
local left_ms = redis.call('PTTL', KEYS[2])
if left_ms >= 0 then return {'owned', left_ms} end
local ahead = #redis.call('XRANGE', KEYS[3], '(' .. cursor, '+', 'COUNT', 1) > 0
if state == 'active' then redis.call('HSET', KEYS[1], 'state', ahead and 'waiting' or 'idle') end
return {ahead and 'orphan' or 'quiet'}
