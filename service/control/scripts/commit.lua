-- What an owner writes of a step: everything, or nothing.
-- KEYS record lease log manifest frames requests cancels
-- ARGV lease, expected tip, new tip ('' = no segment), manifest entry, cursor, poses done after the cursor, frames kept,
--      request id, progress ('' = none is kept), progress is final ('1'), number of record values,
--      then fields and values of the record, then per frame: stream id, meta, image
local state, tip, version, num_segments = unpack(redis.call('HMGET', KEYS[1], 'state', 'tip', 'version', 'num_segments'))
if not state or state == 'deleted' then return {'deleted'} end
if ARGV[3] ~= '' and tip == ARGV[3] then  -- this very commit, sent again after its answer was lost
  return {'ok', tonumber(version), redis.call('SISMEMBER', KEYS[7], ARGV[8])}
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {'lease'} end
if tip ~= ARGV[2] then return {'tip'} end

local first_frame = 12 + tonumber(ARGV[11])
for i = first_frame, #ARGV, 3 do
  redis.call('XADD', KEYS[5], 'MAXLEN', ARGV[7], ARGV[i], 'meta', ARGV[i + 1], 'image', ARGV[i + 2])
  redis.call('PUBLISH', KEYS[5], ARGV[i + 1] .. '\n' .. ARGV[i + 2])
end
if first_frame > #ARGV then redis.call('PUBLISH', KEYS[5], '') end
version = tonumber(version) + 1
local record = {'version', version, 'cursor', ARGV[5], 'cursor_done', ARGV[6], unpack(ARGV, 12, first_frame - 1)}
if ARGV[3] ~= '' then
  redis.call('RPUSH', KEYS[4], ARGV[4])
  for _, part in ipairs({'tip', ARGV[3], 'num_segments', (tonumber(num_segments) or 0) + 1}) do table.insert(record, part) end
end
redis.call('HSET', KEYS[1], unpack(record))
local ms, count = string.match(ARGV[5], '^(%d+)-(%d+)$')
if ms then redis.call('XTRIM', KEYS[3], 'MINID', ms .. '-' .. string.format('%d', count + 1)) end  -- up to the cursor and with it

local cancel = ARGV[9] == '' and 0 or redis.call('SISMEMBER', KEYS[7], ARGV[8])
if ARGV[10] == '1' then redis.call('SREM', KEYS[7], ARGV[8]) end
if ARGV[9] ~= '' and redis.call('HEXISTS', KEYS[6], ARGV[8]) == 1 then
  redis.call('HSET', KEYS[6], ARGV[8], ARGV[9])
end
return {'ok', version, cancel}
