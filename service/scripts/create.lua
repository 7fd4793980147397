-- KEYS record log requests order
-- ARGV request id, kind, body, progress, then the record's fields and values
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local fields = {}
for i = 5, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('XADD', KEYS[2], '*', 'id', ARGV[1], 'kind', ARGV[2], 'body', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
redis.call('RPUSH', KEYS[4], ARGV[1])
return 1
