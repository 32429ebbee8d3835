"""The store in a Redis server (extra ``mambakit[redis]``): for writers on several machines.

A user is one hash, the record in the field ``record`` and an empty field for the key of every event, so that
a server that runs out of memory drops both or none. Lua scripts, which Redis runs one at a time, compare and
write (https://redis.io/docs/latest/develop/programmability/eval-intro/). How much outlives a crash of the
server is up to its persistence (``appendonly yes``). Keys begin with ``mambakit:``; one server, no cluster.

If an answer is lost, the client asks again and hears that the event has been applied: it counts once, but
nobody is told that it was new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.domains.recommendation.store.base import FORMAT, Change, Found, Store
from mambakit.domains.recommendation.store.records import DIGEST

_META, _USERS, _USER = "mambakit:meta", "mambakit:users", "mambakit:user:"
_RECORD = b"record"  # 6 bytes: no event's key is as short
_TIMEOUT_S = 30.0

# Keys: meta, users. Arguments: format, fingerprint.
_BIND = """
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('HSET', KEYS[1], 'format', ARGV[1], 'fingerprint', ARGV[2])
end
return redis.call('HMGET', KEYS[1], 'format', 'fingerprint')
"""
# A script reads too: a full server refuses even to read in MULTI.
# Keys: meta, users, the user's. Arguments: user, event keys one after the other.
_FIND = f"""
local seen = {{}}
for at = 1, #ARGV[2], {DIGEST} do
  seen[#seen + 1] = redis.call('HEXISTS', KEYS[3], string.sub(ARGV[2], at, at + {DIGEST - 1}))
end
return {{redis.call('HGET', KEYS[1], 'fingerprint'), redis.call('HGET', KEYS[3], 'record'),
  seen, redis.call('SISMEMBER', KEYS[2], ARGV[1])}}
"""
# The same keys. Arguments: fingerprint, user, event keys one after the other, version, record.
_SWAP = f"""
local model = redis.call('HGET', KEYS[1], 'fingerprint')
if model ~= ARGV[1] then return {{'MODEL', model}} end
for at = 1, #ARGV[3], {DIGEST} do
  local event = string.sub(ARGV[3], at, at + {DIGEST - 1})
  if redis.call('HEXISTS', KEYS[3], event) == 1 then return {{'LOST'}} end
end
local old = redis.call('HGET', KEYS[3], 'record')
if (old and string.sub(old, 1, {DIGEST}) or '') ~= ARGV[4] then return {{'LOST'}} end
redis.call('HSET', KEYS[3], 'record', ARGV[5])
for at = 1, #ARGV[3], {DIGEST} do
  redis.call('HSET', KEYS[3], string.sub(ARGV[3], at, at + {DIGEST - 1}), '')
end
redis.call('SADD', KEYS[2], ARGV[2])
return {{'DONE'}}
"""
# The same keys. Arguments: fingerprint, user, record, event keys one after the other.
_REPLACE = f"""
local model = redis.call('HGET', KEYS[1], 'fingerprint')
if model ~= ARGV[1] then return {{'MODEL', model}} end
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'record', ARGV[3])
for at = 1, #ARGV[4], {DIGEST} do
  redis.call('HSET', KEYS[3], string.sub(ARGV[4], at, at + {DIGEST - 1}), '')
end
redis.call('SADD', KEYS[2], ARGV[2])
return {{'DONE'}}
"""
# The same keys. Arguments: fingerprint, user.
_DELETE = """
local model = redis.call('HGET', KEYS[1], 'fingerprint')
if model ~= ARGV[1] then return {'MODEL', model} end
redis.call('DEL', KEYS[3])
return {'DONE', redis.call('SREM', KEYS[2], ARGV[2])}
"""


class RedisStore(Store):
    """States of users in one database of a Redis server.

    Args:
        url: ``redis://[[user]:[password]@]host:port/database``, or rediss:// (TLS) or unix://.
        fingerprint: Of the model.
        anew: Delete all users first, whatever model they belonged to.

    Raises:
        UserError: If the package redis isn't installed, or the server can't be reached.
        UsageError: On a URL that redis doesn't understand.
        DataError: If what is there is no store of states, or belongs to another model.
    """

    def __init__(self, url: str, fingerprint: str, *, anew: bool = False) -> None:
        try:
            import redis
        except ImportError:
            raise UserError(
                "a store in Redis needs the package redis: pip install 'mambakit[redis]'"
            ) from None
        parts = urlsplit(url)
        # without a password
        super().__init__(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", fingerprint)
        self._redis = redis
        try:
            self._client: Any = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S)
        except (ValueError, TypeError) as error:
            raise UsageError(f"store: {self.name} is no URL of a Redis server ({error})") from None
        self._find_script = self._client.register_script(_FIND)
        self._swap_script = self._client.register_script(_SWAP)
        self._replace_script = self._client.register_script(_REPLACE)
        self._delete_script = self._client.register_script(_DELETE)
        with self._errors():
            if anew:
                self._empty()
            found = self._client.eval(_BIND, 2, _META, _USERS, FORMAT, fingerprint)
        number, model = (None if one is None else one.decode("utf-8", "replace") for one in found)
        if model is not None:
            self._check_format(int(number) if number is not None and number.isdecimal() else number)
        self._check_model(model)

    def delete(self, user: str) -> bool:
        return bool(self._run(self._delete_script, [(user, ())])[0][1])

    def __len__(self) -> int:
        with self._errors():
            return int(self._client.scard(_USERS))

    def __iter__(self) -> Iterator[str]:
        seen: set[bytes] = set()  # a scan may come to a name twice
        with self._errors():
            for name in self._client.sscan_iter(_USERS, count=1000):
                if name not in seen:
                    seen.add(name)
                    yield name.decode()

    def close(self) -> None:
        self._client.close()

    def _find(self, asked: Sequence[tuple[str, Sequence[bytes]]]) -> list[Found]:
        answers = self._asked(self._find_script, [(user, (user, b"".join(keys))) for user, keys in asked])
        found = []
        for (user, keys), (model, packed, seen, known) in zip(asked, answers, strict=True):
            if known and packed is None:
                raise self._damaged(user, "the server has dropped it: set its maxmemory-policy to noeviction")
            applied = {key for key, whether in zip(keys, seen, strict=True) if whether}
            found.append(Found(None if model is None else model.decode("utf-8", "replace"), packed, applied))
        return found

    def _swap(self, changes: Sequence[Change]) -> list[bool]:
        given = [(user, (b"".join(keys), version, packed)) for user, keys, version, packed in changes]
        return [answer[0] == b"DONE" for answer in self._run(self._swap_script, given)]

    def _replace(self, user: str, keys: list[bytes], packed: bytes) -> None:
        self._run(self._replace_script, [(user, (packed, b"".join(keys)))])

    def _run(self, script: Any, given: Sequence[tuple[str, Sequence[bytes]]]) -> list[list[Any]]:
        """Answers of a script that looks after the model, of each user and the arguments that go with it."""
        answers = self._asked(script, [(user, (self.fingerprint, user, *rest)) for user, rest in given])
        for answer in answers:
            if answer[0] == b"MODEL":
                model = answer[1] if len(answer) > 1 else None
                self._check_model(model.decode("utf-8", "replace") if model else None)
        return answers

    def _asked(self, script: Any, given: Sequence[tuple[str, Sequence[str | bytes]]]) -> list[list[Any]]:
        """Answers of a script of each user and its arguments; of several in one round trip."""
        with self._errors():
            if len(given) == 1:
                [(user, arguments)] = given
                return [list(script(keys=[_META, _USERS, _USER + user], args=arguments))]
            pipe = self._client.pipeline(transaction=False)
            for user, arguments in given:
                script(keys=[_META, _USERS, _USER + user], args=arguments, client=pipe)
            return [list(answer) for answer in pipe.execute()]

    def _empty(self) -> None:
        """Delete all users. Whoever writes meanwhile is stopped by the missing fingerprint."""
        self._client.delete(_META)
        for key in self._client.scan_iter(match=f"{_USER}*", count=1000):
            self._client.unlink(key)
        self._client.delete(_USERS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The client's errors in our words."""
        errors = self._redis.exceptions
        try:
            yield
        except (errors.ConnectionError, errors.TimeoutError) as error:
            raise UserError(
                f"can't reach {self.name} ({error}); start redis-server, or name the one that runs"
            ) from error
        except errors.ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise DataError(
                    f"{self.name} has other things under mambakit's names ({error}); name another database"
                ) from error
            raise UserError(f"{self.name} refuses to keep states: {error}") from error
