-- Put a session in the wake queue, once: it keeps its place until it is pulled. If it was and is still without an owner, it comes again.
-- KEYS queue, its sessions; ARGV session, group, about how many entries are kept
local entry = redis.call('HGET', KEYS[2], ARGV[1])
if entry and redis.call('EXISTS', KEYS[1]) == 1 then
  local pulled = '-'
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    if group[2] == ARGV[2] then pulled = '(' .. group[8] end  -- 'name', name, ..., 'last-delivered-id', id
  end
  local last = redis.call('XREVRANGE', KEYS[1], entry, pulled, 'COUNT', 1)[1]
  if last and last[1] == entry then return end
  redis.call('XACK', KEYS[1], ARGV[2], entry)
  redis.call('XDEL', KEYS[1], entry)
end
entry = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'session', ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], entry)
