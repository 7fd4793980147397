-- Write a new session, whole, unless it exists, or the sweeper has given it up since it was reserved.
-- KEYS record log requests order manifest names reservation
-- ARGV whether it has to be reserved ('' = no), count and record's fields and values, count and names with what they name, count and manifest entries,
--      then nothing, or the first request: id, kind, body, progress
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
if ARGV[1] ~= '' and redis.call('EXISTS', KEYS[7]) == 0 then return 'gone' end
local at = 2
local function each(command, key)  -- in parts: Lua's stack holds 8000 values
  local last = at + tonumber(ARGV[at])
  for first = at + 1, last, 1000 do redis.call(command, key, unpack(ARGV, first, math.min(first + 999, last))) end
  at = last + 1
end
each('HSET', KEYS[1])
each('HSET', KEYS[6])
each('RPUSH', KEYS[5])
if at <= #ARGV then
  redis.call('XADD', KEYS[2], '*', 'id', ARGV[at], 'kind', ARGV[at + 1], 'body', ARGV[at + 2])
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 3])
  redis.call('RPUSH', KEYS[4], ARGV[at])
end
redis.call('DEL', KEYS[7])
return 'ok'
