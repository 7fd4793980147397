-- End a claim, unless it is another's by now. KEYS claim; ARGV what it holds, what takes its place ('' = nothing), seconds that this stays
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
