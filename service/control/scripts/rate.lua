-- Take from a bucket that refills steadily (GCRA); answers the milliseconds to wait, 0 = taken.
-- KEYS bucket; ARGV units to take, units per second, units a full bucket holds
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + time[2] / 1000
local unit_ms = 1000 / ARGV[2]
local empty_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now_ms) + ARGV[1] * unit_ms
local wait_ms = empty_at - now_ms - ARGV[3] * unit_ms
if wait_ms > 0.001 then return math.ceil(wait_ms) end
redis.call('DEL', KEYS[1])  -- first: a full Redis takes nothing new but from a script that has removed something
redis.call('SET', KEYS[1], string.format('%.3f', empty_at), 'PX', math.ceil(empty_at - now_ms))
return 0
