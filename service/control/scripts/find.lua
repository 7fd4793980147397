-- The entry of the segment that holds a frame, or nothing: by bisection, as frames are numbered in the manifest's order.
-- KEYS manifest; ARGV frame
local frame = tonumber(ARGV[1])
local low, high = 0, redis.call('LLEN', KEYS[1]) - 1
while low <= high do
  local middle = math.floor((low + high) / 2)
  local entry = redis.call('LINDEX', KEYS[1], middle)
  local found = cjson.decode(entry)
  if found.first_frame > frame then
    high = middle - 1
  elseif found.first_frame + found.num_frames <= frame then
    low = middle + 1
  else
    return entry
  end
end
return false
