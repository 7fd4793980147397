-- Take what was pulled out of the wake queue. KEYS queue, its sessions; ARGV group, then entries
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
  local session = entry and entry[2][2]
  if session and redis.call('HGET', KEYS[2], session) == ARGV[i] then redis.call('HDEL', KEYS[2], session) end
end
