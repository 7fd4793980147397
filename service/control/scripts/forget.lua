-- Forget workers that have not pulled for long. Not those with something pending, which would go with them: others claim it first.
-- KEYS queue; ARGV group, milliseconds
if redis.call('EXISTS', KEYS[1]) == 0 then return end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local consumers = group[2] == ARGV[1] and redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]) or {}
  for _, one in ipairs(consumers) do  -- 'name', name, 'pending', count, 'idle', milliseconds
    if one[4] == 0 and one[6] >= tonumber(ARGV[2]) then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one[2]) end
  end
end
