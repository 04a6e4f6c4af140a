"""Redis's atomic steps: Lua, one script a constant, with all its keys in one hash slot."""

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
-- KEYS: versions, pointer, trials.
-- ARGV: version, channel, catalogue, the current version as it was seen, the past to keep.
-- Moves the pointer if nobody else has moved it since it was seen. What a server refused may have been healed since;
-- what one died of is allowed by name alone.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local current = redis.call('HGET', KEYS[2], 'current') or ''
if current ~= ARGV[1] then
  if current ~= ARGV[4] then return -1 end
  redis.call('HSET', KEYS[2], 'current', ARGV[1], 'past', ARGV[5])
  local previous = string.match(ARGV[5], '%S+$')
  if previous then redis.call('HSET', KEYS[2], 'previous', previous) else redis.call('HDEL', KEYS[2], 'previous') end
  local allowed = string.match(redis.call('HGET', KEYS[3], ARGV[1]) or '', '^refused %d+ (%d+) ')
  if allowed then redis.call('HSET', KEYS[3], ARGV[1], 'open 0 ' .. allowed .. ' - ') end
end
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
"""
)

# Redis's own clock decides what has expired, here and in the scripts below.
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# A trial is STATE ENDS_AT_MS ALLOWED HOLDER DETAIL; the rules are those of `igd_core.store.trials`.
_TRIALS = (
    _NOW
    + """
local function read(key, version)
  local state, ends, allowed, holder, detail =
    string.match(redis.call('HGET', key, version) or '', '^(%a+) (%d+) (%d+) (%S+) (.*)$')
  if not state then return 'open', 0, 0, '-', '' end
  return state, tonumber(ends), tonumber(allowed), holder, detail
end
local function text(state, ends, allowed, holder, detail)
  return string.format('%s %.0f %.0f %s %s', state, ends, allowed, holder, detail)
end
local function seen(state, ends, allowed, holder, detail)
  if state == 'trying' and ends <= now then
    return 'died', ends, allowed, holder, holder .. ' tried it and was not heard of again'
  end
  return state, ends, allowed, holder, detail
end
"""
)

LIST = Script(
    text=_TRIALS
    + """
-- KEYS: versions, pointer, holds, trials.
local versions, trials = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #versions, 2 do trials[#trials + 1] = text(seen(read(KEYS[4], versions[i]))) end
return {
  versions,
  redis.call('HMGET', KEYS[2], 'current', 'previous', 'past'),
  redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf'),
  trials,
}
"""
)

TRIAL = Script(
    text=_TRIALS
    + """
-- KEYS: trials. ARGV: version. Writes nothing.
return text(seen(read(KEYS[1], ARGV[1])))
"""
)

BEGIN_TRIAL = Script(
    text=_TRIALS
    + """
-- KEYS: versions, trials. ARGV: version, holder, milliseconds. Answers nil where the version is not stored.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return nil end
local state, ends, allowed, holder, detail = read(KEYS[2], ARGV[1])
if state == 'open' or (state == 'trying' and holder == ARGV[2]) then
  state, ends, holder, detail = 'trying', now + ARGV[3], ARGV[2], ''
elseif state ~= 'trying' or ends > now then
  return text(state, ends, allowed, holder, detail)
end
local trial = text(seen(state, ends, allowed, holder, detail))
redis.call('HSET', KEYS[2], ARGV[1], trial)
return trial
"""
)

END_TRIAL = Script(
    text=_TRIALS
    + """
-- KEYS: versions, trials. ARGV: version, holder, verdict, detail, channel, catalogue.
local state, ends, allowed, holder, detail = read(KEYS[2], ARGV[1])
local stands = {passed = {}, died = {passed = true}, refused = {passed = true, died = true}}
local trial = text(state, ends, allowed, holder, detail)
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return trial end
if ARGV[3] == 'left' then
  if state == 'trying' and holder == ARGV[2] then trial = text('open', 0, allowed, '-', '') end
elseif not stands[ARGV[3]][state] then
  trial = text(ARGV[3], 0, allowed, ARGV[2], ARGV[4])
end
redis.call('HSET', KEYS[2], ARGV[1], trial)
redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return trial
"""
)

ALLOW = Script(
    text=_TRIALS
    + """
-- KEYS: versions, trials. ARGV: version, channel, catalogue.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local _, _, allowed = read(KEYS[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], text('open', 0, allowed + 1, '-', ''))
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
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
-- KEYS: versions, pointer, holds, trials, every chunk. ARGV: version.
-- Removes the version unless somebody needs it.
for _, field in ipairs({'current', 'previous'}) do
  if redis.call('HGET', KEYS[2], field) == ARGV[1] then return 0 end
end
local held = ARGV[1] .. '/'
for _, hold in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf')) do
  if string.sub(hold, 1, #held) == held then return 0 end
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
for i = 5, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""
)

# The rules are those of `igd_core.store.events.joining`. An event that has the time of others gets its order here,
# after the fifth U+001F, as `Event.packed` writes it. For that, Redis reads all that it has of the user: 0.5 us each.
APPEND = Script(
    text=r"""
-- KEYS: a user's history. ARGV: milliseconds until it is forgotten, how many events are kept, then event id, time and
-- event by turns. Answers how many events joined, and how many there are.
local most, new, unknown, orders, times = tonumber(ARGV[2]), 0, {}, {}, {}
local latest, is_heap = -math.huge, false
local function sink(at)  -- in the heap of the `most` latest times, whose first is the earliest
  local moved = times[at]
  while 2 * at <= #times do
    local child = 2 * at
    if child < #times and times[child + 1] < times[child] then child = child + 1 end
    if times[child] >= moved then break end
    times[at] = times[child]
    at = child
  end
  times[at] = moved
end
for i = 3, #ARGV, 3 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
    unknown[#unknown + 1] = i
    orders[ARGV[i + 1]] = 0
  end
end
local known = #unknown > 0 and redis.call('HVALS', KEYS[1]) or {}
for _, event in ipairs(known) do
  local at = string.match(event, '^%S+')
  local ms = tonumber(at)
  times[#times + 1] = ms
  if ms > latest then latest = ms end
  if orders[at] then
    local order = string.match(event, '\31[^\31]*\31[^\31]*\31[^\31]*\31[^\31]*\31(%d+)')
    orders[at] = math.max(orders[at], tonumber(order or 0) + 1)
  end
end
for _, i in ipairs(unknown) do
  local at, event = ARGV[i + 1], ARGV[i + 2]
  local ms, order = tonumber(at), orders[at]
  if ms <= latest and #times >= most and not is_heap then  -- most events are the latest, and nobody need sort
    is_heap = true
    for place = math.floor(#times / 2), 1, -1 do sink(place) end
    while #times > most do
      times[1] = times[#times]
      times[#times] = nil
      if #times > 0 then sink(1) end
    end
  end
  if #times < most or ms > latest or ms > times[1] then
    if order > 0 then
      local _, said = string.gsub(event, '\31', '')
      event = event .. string.rep('\31', 5 - said) .. order
    end
    if redis.call('HSETNX', KEYS[1], ARGV[i], at .. ' ' .. event) == 1 then
      orders[at], new = order + 1, new + 1
      if is_heap then  -- the earliest of the latest is none of them any more
        times[1] = ms
        sink(1)
      else
        times[#times + 1] = ms
      end
      latest = math.max(latest, ms)
    end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {new, redis.call('HLEN', KEYS[1])}
"""
)

# Each record begins with the time at which it ends, milliseconds since 1970 and a space.
RECORD = Script(
    text="""
-- KEYS: a list of a user. ARGV: how many records are kept, milliseconds for which they are, then the records.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local ends = string.format('%.0f ', now_ms + ARGV[2])
for i = 3, #ARGV do redis.call('RPUSH', KEYS[1], ends .. ARGV[i]) end
redis.call('LTRIM', KEYS[1], -ARGV[1], -1)
local oldest = redis.call('LINDEX', KEYS[1], 0)
while oldest and tonumber(string.match(oldest, '^%d+')) <= now_ms do
  redis.call('LPOP', KEYS[1])
  oldest = redis.call('LINDEX', KEYS[1], 0)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
)

FORGET = Script(
    text="""
-- KEYS: a hash or a list of a user. Deletes it, and answers how much was in it.
local kind, count = redis.call('TYPE', KEYS[1]).ok, 0
if kind == 'hash' then count = redis.call('HLEN', KEYS[1]) end
if kind == 'list' then count = redis.call('LLEN', KEYS[1]) end
redis.call('DEL', KEYS[1])
return count
"""
)
