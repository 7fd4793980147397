-- What an owner needs to go on. KEYS record log requests cancels; ARGV entries to look ahead
-- Returns nothing for a session that is gone, else the record, the first entries of the log, and for each its progress and whether it is to be cancelled.
local record = redis.call('HGETALL', KEYS[1])
if #record == 0 or redis.call('HGET', KEYS[1], 'state') == 'deleted' then return {} end
local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[1])
local progress, cancels = {}, {}
for i, entry in ipairs(entries) do
  progress[i] = redis.call('HGET', KEYS[3], entry[2][2])
  cancels[i] = redis.call('SISMEMBER', KEYS[4], entry[2][2])
end
return {record, entries, progress, cancels}
