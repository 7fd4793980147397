-- Claim an idempotency key for a while, or hold it longer, unless it was used for something else, is answered, or is another's.
-- What ids are derived from stays the same, however often it is claimed.
-- KEYS what stands there; ARGV what is asked, the claim, the seed of ids ('' = only hold it longer), milliseconds, seconds until it is forgotten
-- Returns the seed ('' = it can't be held), and what stood there
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local stored, seed = redis.call('GET', KEYS[1]) or '', ARGV[3]
if stored ~= '' then
  local known = cjson.decode(stored)
  local is_free = seed ~= '' and known.asked == ARGV[1] and known.until_ms and known.until_ms <= now_ms
  if known.claim ~= ARGV[2] and not is_free then return {'', stored} end
  seed = known.seed
  redis.call('DEL', KEYS[1])  -- first: a full Redis takes nothing new but from a script that has removed something
end
if seed == '' then return {'', ''} end
local claim = {asked = ARGV[1], claim = ARGV[2], seed = seed, until_ms = now_ms + ARGV[4]}
redis.call('SET', KEYS[1], cjson.encode(claim), 'EX', ARGV[5])
return {seed, stored}
