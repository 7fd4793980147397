-- What an owner needs to go on. KEYS record log requests cancels; ARGV entries to look ahead, version of the record that it has ('' = none)
-- Returns nothing for a session that is gone, else how many requests were ever asked of it, whether these are all that wait, the record (nothing of it, if it is still at that version: what may differ then is when the
-- session was touched and expires), cursor, poses done after it, the first entries of the log, and for each its progress and whether it is to be cancelled.
local state, version, cursor, done, asked = unpack(redis.call('HMGET', KEYS[1], 'state', 'version', 'cursor', 'cursor_done', 'asked'))
if not state or state == 'deleted' then return {} end
local record = version == ARGV[2] and {} or redis.call('HGETALL', KEYS[1])
local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[1])
local progress, cancels = {}, {}
for i, entry in ipairs(entries) do
  local is_live = entry[2][4] == 'live'  -- no progress is kept of it, nothing to be cancelled
  progress[i] = not is_live and redis.call('HGET', KEYS[3], entry[2][2])
  cancels[i] = is_live and 0 or redis.call('SISMEMBER', KEYS[4], entry[2][2])
end
local is_whole = #entries < tonumber(ARGV[1])
return {tonumber(asked) or 0, is_whole, record, cursor, done, entries, progress, cancels}
