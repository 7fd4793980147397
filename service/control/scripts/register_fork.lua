-- Note that another session is about to use these segments: once a session is deleted, no fork of it can begin.
-- KEYS record lease forks; ARGV lease, the fork, now
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'deleted' then return 'deleted' end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lease' end
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
return 'ok'
