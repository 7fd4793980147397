-- KEYS record requests cancels lease; ARGV request id
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'deleted' then return {state or 'unknown'} end
local progress = redis.call('HGET', KEYS[2], ARGV[1])
if not progress then return {'no request'} end
local now = cjson.decode(progress)['state']
if now == 'queued' or now == 'running' then redis.call('SADD', KEYS[3], ARGV[1]) end
return {'ok', progress, redis.call('SISMEMBER', KEYS[3], ARGV[1]), redis.call('GET', KEYS[4]) or ''}
