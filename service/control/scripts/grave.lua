-- Note that the objects of a deleted session are to go. KEYS graves; ARGV session, from when on
redis.call('ZREM', KEYS[1], ARGV[1])  -- first: a full Redis takes nothing new but from a script that has removed something
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
