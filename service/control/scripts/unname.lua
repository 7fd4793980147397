-- Take a name back. KEYS record names; ARGV name
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'deleted' then return state or 'unknown' end
if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then return 'no name' end
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 'ok'
