-- End a claim, unless it is another's by now. KEYS what stands there; ARGV the claim, what takes its place ('' = nothing), seconds that this stays
local stored = redis.call('GET', KEYS[1])
if not stored or cjson.decode(stored).claim ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])  -- first: a full Redis takes nothing new but from a script that has removed something
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
return 1
