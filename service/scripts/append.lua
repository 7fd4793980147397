-- Append a request. A live pose replaces the one of its camera among the live poses at the end of the log: newest wins.
-- KEYS record lease log requests order
-- ARGV request id, kind, body, progress ('' = none is kept), most requests waiting, progress records kept, now, expiry, camera,
--      version that the session must have ('' = any)
local state, version = unpack(redis.call('HMGET', KEYS[1], 'state', 'version'))
if not state then return {'unknown'} end
if state == 'deleted' or state == 'failed' then return {state} end
local owner = redis.call('GET', KEYS[2]) or ''
local known = ARGV[4] ~= '' and redis.call('HGET', KEYS[4], ARGV[1])
if known then return {'ok', owner, known} end
if ARGV[10] ~= '' and ARGV[10] ~= version then return {'version', version} end

local replaced = false
if ARGV[2] == 'live' then
  for _, entry in ipairs(redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 16)) do
    if entry[2][4] ~= 'live' then break end
    if entry[2][8] == ARGV[9] then
      redis.call('XDEL', KEYS[3], entry[1])
      replaced = true
      break
    end
  end
end
if not replaced and redis.call('XLEN', KEYS[3]) >= tonumber(ARGV[5]) then return {'full'} end

redis.call('XADD', KEYS[3], '*', 'id', ARGV[1], 'kind', ARGV[2], 'body', ARGV[3], 'camera', ARGV[9])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
  if redis.call('RPUSH', KEYS[5], ARGV[1]) > tonumber(ARGV[6]) then
    redis.call('HDEL', KEYS[4], redis.call('LPOP', KEYS[5]))
  end
end
redis.call('HSET', KEYS[1], 'touched_s', ARGV[7], 'expires_s', ARGV[8])
if state == 'idle' then redis.call('HSET', KEYS[1], 'state', 'waiting') end
return {'ok', owner, ARGV[4]}
