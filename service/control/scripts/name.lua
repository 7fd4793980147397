-- Name a state of a World; only its owner does. KEYS record lease names; ARGV lease, name, what it names
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'deleted' then return 'deleted' end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lease' end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 'ok'
