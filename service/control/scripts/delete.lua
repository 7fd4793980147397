-- Leave a tombstone: an owner's commit is refused from here on, and so is the end of a creation.
-- KEYS record lease log manifest frames requests order cancels names shares video garbage reservation guests_order
-- ARGV version ('' = any), only if expired by this time ('' = in any case), seconds the tombstone stays, what no other deletion is called
local state, version, owner, expires, by = unpack(redis.call('HMGET', KEYS[1], 'state', 'version', 'owner', 'expires_s', 'deleted_by'))
if not state then
  if ARGV[2] ~= '' and redis.call('EXISTS', KEYS[13]) == 1 then return {'alive'} end
  redis.call('DEL', KEYS[13])
  return {'unknown'}
end
if state == 'deleted' then return {by == ARGV[4] and 'ok' or 'deleted', owner} end  -- ok: sent again after its answer was lost
if ARGV[1] ~= '' and ARGV[1] ~= version then return {'version', version} end
if ARGV[2] ~= '' and tonumber(expires) > tonumber(ARGV[2]) then return {'alive', expires} end
redis.call('DEL', unpack(KEYS, 2))  -- first: a full Redis takes nothing new but from a script that has removed something
redis.call('HSET', KEYS[1], 'state', 'deleted', 'version', tonumber(version) + 1, 'deleted_by', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', KEYS[5], '')
return {'ok', owner}
