-- The entry of the first segment of a branch newer than this one, or nothing: by bisection, as branches only grow along the manifest.
-- KEYS manifest; ARGV branch
local branch = tonumber(ARGV[1])
local low, high, newer = 0, redis.call('LLEN', KEYS[1]) - 1, false
while low <= high do
  local middle = math.floor((low + high) / 2)
  local entry = redis.call('LINDEX', KEYS[1], middle)
  if cjson.decode(entry).branch > branch then
    newer, high = entry, middle - 1
  else
    low = middle + 1
  end
end
return newer
