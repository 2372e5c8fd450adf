"""Who may call: keys, each with a name and a role. Pure but for the file they may stand in.

    COLD_STORE_API_KEY     one key, which may do everything
    COLD_STORE_API_KEYS    name:role:key, and further ones after commas; the role is `admin` or `read`
    keys_file of [server]  the same, one a line, `#` before a remark

Refuses a key that is short or that no header can carry, a name or a key twice, a file that everybody may read, and to go without any.
No message repeats a key.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from coldstore.config import Settings
from coldstore.errors import ConfigError, KeyRingError
from coldstore.keyrings.files import read_secret

Role = Literal["admin", "read"]

SHORTEST = 16
_ROLES: dict[str, Role] = {"admin": "admin", "read": "read"}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_KEY = re.compile(r"[!-~]+\Z")
_FORM = "An entry looks like name:role:key; the role is admin or read."


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it was. `read` may look at everything and change nothing."""

    name: str
    role: Role


class Keys:
    """The keys that count. Only their hashes are kept."""

    def __init__(self, entries: Iterable[tuple[Caller, str]]) -> None:
        self._known = [(sha256(key.encode()).digest(), caller) for caller, key in entries]

    def __len__(self) -> int:
        return len(self._known)

    def who(self, given: bytes) -> Caller | None:
        """Whose key `given` is. It takes the same time whichever it is, or none."""
        asked, found = sha256(given).digest(), None
        for digest, caller in self._known:
            if hmac.compare_digest(digest, asked):
                found = caller
        return found


def load(settings: Settings) -> Keys:
    """The configured keys. Raises `ConfigError`."""
    found = list(_entries(settings))
    if not found:
        raise ConfigError(
            "the HTTP API has no key, and nothing is served without one",
            hint=f"Set COLD_STORE_API_KEY to a secret of {SHORTEST} characters or more, or name a keys_file in [server].",
        )
    for what, values in (("names", [c.name for c, _ in found]), ("entries", [key for _, key in found])):
        if len(set(values)) < len(values):
            raise ConfigError(f"two API keys have the same {'name' if what == 'names' else 'secret'}", hint="Give each its own.")
    return Keys(found)


def _entries(settings: Settings) -> Iterator[tuple[Caller, str]]:
    if settings.api_key is not None:
        yield Caller("default", "admin"), _checked(settings.api_key.get_secret_value().strip(), "COLD_STORE_API_KEY")
    if settings.api_keys is not None:
        yield from parse(settings.api_keys.get_secret_value().split(","), what="COLD_STORE_API_KEYS")
    if settings.server_keys_file is not None:
        path = Path(settings.server_keys_file)
        try:
            text = read_secret(path, what="file of API keys")
        except KeyRingError as exc:
            raise ConfigError(
                str(exc), hint="It is the keys_file of [server]: closed to others (chmod 600), one name:role:key a line."
            ) from exc
        yield from parse(text.splitlines(), what=str(path))


def parse(lines: Iterable[str], *, what: str) -> Iterator[tuple[Caller, str]]:
    """(whose, key) of each line that is none of the empty ones and the remarks."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, rest = text.partition(":")
        role, colon, key = rest.partition(":")
        where = f"entry {number} of {what}"
        if not colon or not _NAME.match(name):
            raise ConfigError(f"{where} is no API key", hint=_FORM)
        if role not in _ROLES:
            raise ConfigError(f"{where} has no role that there is", hint=_FORM)
        yield Caller(name, _ROLES[role]), _checked(key, where)


def _checked(key: str, where: str) -> str:
    if len(key) < SHORTEST:
        raise ConfigError(f"the key of {where} is shorter than {SHORTEST} characters", hint="Make one: openssl rand -hex 24.")
    if not _KEY.match(key):
        raise ConfigError(f"the key of {where} holds what no header can carry", hint="Use letters, digits and signs of ASCII.")
    return key
