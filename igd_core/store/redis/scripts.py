"""What Redis does in one step: Lua, one script a constant, its keys all in one hash slot."""

from __future__ import annotations

from igd_core.store.redis.link import Script

# A full Redis refuses a script's first write if it needs memory, and none of those after it: the record comes before
# all else, so that nothing changes or everything does.
STORE = Script(
    text="""
-- KEYS: versions, pointer, every chunk. ARGV: version, what its record says.
-- Makes the version visible if all its chunks are there.
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then return 0 end
end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  local sequence, now = redis.call('HINCRBY', KEYS[2], 'stored', 1), redis.call('TIME')
  local stored_at_ms = string.format('%d%03d', now[1], math.floor(now[2] / 1000))
  redis.call('HSET', KEYS[1], ARGV[1], sequence .. ' ' .. stored_at_ms .. ' ' .. ARGV[2])
end
for i = 3, #KEYS do redis.call('PERSIST', KEYS[i]) end
return 1
"""
)

DISCARD = Script(
    text="""
-- KEYS: versions, every chunk. ARGV: version.
-- Removes what an upload that failed has left, unless the version is visible all the same.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
)

POINT = Script(
    text="""
-- KEYS: versions, pointer. ARGV: version, channel, catalogue, the current version as it was seen, the past to keep.
-- Moves the pointer if nobody else has moved it since it was seen.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local current = redis.call('HGET', KEYS[2], 'current') or ''
if current ~= ARGV[1] then
  if current ~= ARGV[4] then return -1 end
  redis.call('HSET', KEYS[2], 'current', ARGV[1], 'past', ARGV[5])
  local previous = string.match(ARGV[5], '%S+$')
  if previous then redis.call('HSET', KEYS[2], 'previous', previous) else redis.call('HDEL', KEYS[2], 'previous') end
end
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
"""
)

# Redis's own clock says what has ended, here and in the scripts below.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

LIST = Script(
    text=_NOW
    + """
-- KEYS: versions, pointer, holds.
return {
  redis.call('HGETALL', KEYS[1]),
  redis.call('HMGET', KEYS[2], 'current', 'previous'),
  redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf'),
}
"""
)

HOLD = Script(
    text=_NOW
    + """
-- KEYS: holds. ARGV: version/holder, milliseconds.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return 1
"""
)

PRUNE = Script(
    text=_NOW
    + """
-- KEYS: versions, pointer, holds, every chunk. ARGV: version.
-- Removes the version unless somebody needs it.
for _, field in ipairs({'current', 'previous'}) do
  if redis.call('HGET', KEYS[2], field) == ARGV[1] then return 0 end
end
local held = ARGV[1] .. '/'
for _, hold in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf')) do
  if string.sub(hold, 1, #held) == held then return 0 end
end
redis.call('HDEL', KEYS[1], ARGV[1])
for i = 4, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
)

APPEND = Script(
    text="""
-- KEYS: a user's history. ARGV: milliseconds until it is forgotten, then event id and event by turns.
-- Answers how many events were new, and how many there are.
local new = 0
for i = 2, #ARGV, 2 do
  new = new + redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {new, redis.call('HLEN', KEYS[1])}
"""
)
