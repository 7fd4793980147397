-- KEYS record lease; ARGV lease, milliseconds, states that may become active (comma-separated, in commas)
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'unknown'} end
if not string.find(ARGV[3], ',' .. state .. ',', 1, true) then return {state} end
if redis.call('GET', KEYS[2]) == ARGV[1] then return {'ok'} end  -- sent again after its answer was lost
if not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {'held'} end
redis.call('HSET', KEYS[1], 'state', 'active')
redis.call('HINCRBY', KEYS[1], 'version', 1)
return {'ok'}
