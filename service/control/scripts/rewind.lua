-- Move the head of a World: a step of its own, so it is fenced as a commit is.
-- KEYS record lease manifest; ARGV lease, expected tip, manifest entries kept, request id, number of record values, these, then entries added
local state, tip, moved_by = unpack(redis.call('HMGET', KEYS[1], 'state', 'tip', 'moved_by'))
if not state or state == 'deleted' then return 'deleted' end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 'lease' end
if moved_by == ARGV[4] then return 'ok' end  -- sent again after its answer was lost
if tip ~= ARGV[2] then return 'tip' end
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[3])
else
  redis.call('LTRIM', KEYS[3], 0, ARGV[3] - 1)
end
local last = 5 + tonumber(ARGV[5])
redis.call('HSET', KEYS[1], 'moved_by', ARGV[4], unpack(ARGV, 6, last))
for first = last + 1, #ARGV, 1000 do redis.call('RPUSH', KEYS[3], unpack(ARGV, first, math.min(first + 999, #ARGV))) end
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 'ok'
