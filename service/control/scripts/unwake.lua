-- Take a session out of the wake queue, pulled or not. KEYS queue, its sessions; ARGV group, session
local entry = redis.call('HGET', KEYS[2], ARGV[2])
if not entry then return end
redis.call('XACK', KEYS[1], ARGV[1], entry)
redis.call('XDEL', KEYS[1], entry)
redis.call('HDEL', KEYS[2], ARGV[2])
