-- Append a request. A live pose replaces the one of its camera among the live poses at the end of the log: newest wins.
-- The owner is told at once, and of a live pose all that it would read; `asked` counts requests, so that it sees what it missed.
-- KEYS record lease log requests order
-- ARGV request id, kind, body, progress ('' = none is kept), most requests waiting, progress records kept, now, expiry, camera,
--      version that the session must have ('' = any), session, what the names of workers' inboxes begin with
-- Returns ok, the owner's lease, the progress that is kept, how many heard of it
local state, version, asked = unpack(redis.call('HMGET', KEYS[1], 'state', 'version', 'asked'))
if not state then return {'unknown'} end
if state == 'deleted' or state == 'failed' then return {state} end
local owner = redis.call('GET', KEYS[2]) or ''
local known = ARGV[4] ~= '' and redis.call('HGET', KEYS[4], ARGV[1])
if known then return {'ok', owner, known, 0} end
if ARGV[10] ~= '' and ARGV[10] ~= version then return {'version', version} end

local waiting, replaced = redis.call('XLEN', KEYS[3]), ''
if ARGV[2] == 'live' and waiting > 0 then
  for _, entry in ipairs(redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 16)) do
    if entry[2][4] ~= 'live' then break end
    if entry[2][8] == ARGV[9] then
      redis.call('XDEL', KEYS[3], entry[1])
      replaced = entry[1]
      break
    end
  end
end
if replaced == '' and waiting >= tonumber(ARGV[5]) then return {'full'} end

local added = redis.call('XADD', KEYS[3], '*', 'id', ARGV[1], 'kind', ARGV[2], 'body', ARGV[3], 'camera', ARGV[9])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
  if redis.call('RPUSH', KEYS[5], ARGV[1]) > tonumber(ARGV[6]) then
    redis.call('HDEL', KEYS[4], redis.call('LPOP', KEYS[5]))
  end
end
asked = (tonumber(asked) or 0) + 1
redis.call('HSET', KEYS[1], 'touched_s', ARGV[7], 'expires_s', ARGV[8], 'asked', asked)
if state == 'idle' then redis.call('HSET', KEYS[1], 'state', 'waiting') end
local heard = 0
local worker = string.match(owner, '^(.*)%.')
if worker then
  local live = ARGV[2] == 'live' and table.concat({added, replaced, ARGV[1], ARGV[3]}, '\n') or ''
  heard = redis.call('PUBLISH', ARGV[12] .. worker, ARGV[11] .. '\n' .. asked .. '\n' .. live)
end
return {'ok', owner, ARGV[4], heard}
