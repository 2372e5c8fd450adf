"""The text of a key file. Pure, but for the random numbers of a new key.

    # comments
    coldstore-key-1:<id>:<base64 of 32 bytes>       the first key seals, all of them open
    retired:<id>:<UTC date>                         a key that was taken away: what it sealed no longer opens, and says why

An id is the beginning of a hash of the key: it tells keys apart and says nothing about them. Blanks separate entries as line breaks do,
so that a variable of one line can hold several. Refuses whatever is not exactly this; no message ever shows an entry.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date

from coldstore.errors import ConfigError, KeyRingError

KEY_BYTES = 32
_VERSION = "coldstore-key-1"
_KEY = re.compile(_VERSION + r":([0-9a-f]{16}):([A-Za-z0-9+/]{43}=)")
_TOMBSTONE = re.compile(r"retired:([0-9a-f]{16}):(\d{4}-\d{2}-\d{2})")
_HEAD = "# A key file of coldstore. The first key seals, all of them open. Keep it secret, and a copy of it apart from the store.\n"
_HINT = "Bring the file back from a copy. Without its key, what was sealed for it alone does not open."


@dataclass(frozen=True, slots=True)
class Key:
    """One key. It shows its id only."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Key:
        return cls.of(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def of(cls, secret: bytes) -> Key:
        return cls(hashlib.sha256(b"coldstore key id" + secret).hexdigest()[:16], secret)

    def text(self) -> str:
        """The key as it stands in a file. A secret."""
        return f"{_VERSION}:{self.id}:{base64.b64encode(self.secret).decode()}"


@dataclass(frozen=True, slots=True)
class Keys:
    """What a key file holds: at least one key, the current one first; and the date when each of the others was retired."""

    keys: tuple[Key, ...]
    retired: Mapping[str, str]


def new_text(key: Key) -> str:
    """A key file with one key."""
    return f"{_HEAD}{key.text()}\n"


def parse(text: str, *, source: str) -> Keys:
    """Raises `KeyRingError`, naming `source` and the line."""
    keys: dict[str, Key] = {}
    retired: dict[str, str] = {}
    for number, word in _entries(text):
        where = f"line {number} of {source}"
        if match := _TOMBSTONE.fullmatch(word):
            found, day = match[1], match[2]
            retired[found] = day
        else:
            key = _key(word, where)
            found = key.id
            if found in keys:
                raise KeyRingError(f"{where} has key {found} once more", hint="Remove one of the two.")
            keys[found] = key
        if found in keys and found in retired:
            raise KeyRingError(f"{where}: key {found} is both there and retired", hint="Remove the entry that is wrong.")
    if not keys:
        raise KeyRingError(f"there is no key in {source}", hint="`coldstore keygen FILE` makes a key file.")
    return Keys(tuple(keys.values()), retired)


def rotated(text: str, key: Key) -> str:
    """`text` with `key` as its current one; the others still open what they sealed."""
    lines = text.splitlines(keepends=True)
    first = next((number for number, word in _entries(text) if _KEY.fullmatch(word)), 1) - 1
    return "".join([*lines[:first], key.text() + "\n", *lines[first:]])


def buried(text: str, key_id: str, *, on: date, source: str) -> str:
    """`text` with a tombstone in the place of a key. Refuses the current key, and one that is not there."""
    there = parse(text, source=source)
    if key_id == there.keys[0].id:
        raise ConfigError(f"{key_id} is the current key of {source}", hint="Make another one current first: --rotate.")
    if day := there.retired.get(key_id):
        raise ConfigError(f"key {key_id} of {source} was retired on {day} already", hint="There is nothing to do.")
    key = next((k for k in there.keys if k.id == key_id), None)
    if key is None:
        raise ConfigError(f"there is no key {key_id} in {source}", hint=f"Its keys are {', '.join(k.id for k in there.keys)}.")
    lines = text.splitlines(keepends=True)
    number = next(number for number, word in _entries(text) if word.startswith(f"{_VERSION}:{key_id}:")) - 1
    lines[number] = lines[number].replace(key.text(), f"retired:{key_id}:{on.isoformat()}")
    return "".join(lines)


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """Each with the number of its line."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            yield from ((number, word) for word in line.split())


def _key(word: str, where: str) -> Key:
    match = _KEY.fullmatch(word)
    if match is None:
        raise _unreadable(word, where)
    key = Key.of(base64.b64decode(match[2]))
    if key.id != match[1]:
        raise KeyRingError(f"{where} is damaged: the key and its id do not belong together", hint=_HINT)
    return key


def _unreadable(word: str, where: str) -> KeyRingError:
    if word.startswith("coldstore-signing-key-"):
        return KeyRingError(f"{where} is a signing key: it signs and cannot seal", hint="`coldstore keygen FILE` makes a key that seals.")
    if re.match(r"coldstore-key-(?!1:)\d+:", word):
        return KeyRingError(f"{where} is a key of a newer kind than this version knows", hint="Use a newer coldstore.")
    return KeyRingError(f"{where} is damaged, or no line of a key file", hint=_HINT)
