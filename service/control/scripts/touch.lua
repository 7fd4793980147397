-- KEYS record; ARGV now, expiry
local state = redis.call('HGET', KEYS[1], 'state')
if state and state ~= 'deleted' then
  redis.call('HSET', KEYS[1], 'touched_s', ARGV[1], 'expires_s', ARGV[2])
end
return state or 'unknown'
