"""The few things that every store does alike: key arithmetic, the nonce that proves an object ours, the pause between attempts.

Pure but for the random numbers; imports no storage library.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping

from coldstore.errors import ConfigError, InvalidKey
from coldstore.storage.store import check_key

# Metadata name of the nonce. S3 and GCS both keep it in lower case with a dash.
NONCE = "coldstore-nonce"

Bytes = bytes | bytearray | memoryview


def new_nonce() -> str:
    """A token nobody else will draw: it stands in an object's metadata and in the names of temporary files."""
    return secrets.token_hex(12)


def flat(data: Bytes) -> memoryview:
    """`data` as a view of single bytes, so that `len` and slices count bytes whatever the caller's item size was."""
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def usable_key(key: str) -> str:
    """`check_key`, and `InvalidKey` too for what no store can hold: text that is not Unicode."""
    try:
        check_key(key).encode()
    except UnicodeEncodeError as exc:
        raise InvalidKey(f"{key!r} cannot be written as UTF-8", key=key) from exc
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself, or `InvalidKey` if no key could start with it: an absolute one, or one that climbs out of the root."""
    whole_segments = prefix.split("/")[:-1]
    if "\0" in prefix or any(s in {"", ".", ".."} for s in whole_segments):
        raise InvalidKey(
            f"{prefix!r} is not a usable prefix", hint="Prefixes are relative and have no empty, '.' or '..' part.", key=prefix
        )
    return prefix


def check_folder(prefix: str) -> str:
    """`prefix` itself, or `InvalidKey` if it is neither empty nor a folder that ends in `/`."""
    if prefix and not prefix.endswith("/"):
        raise InvalidKey(f"{prefix!r} is not a folder", hint="A folder prefix is empty or ends in '/'.", key=prefix)
    return check_prefix(prefix)


def check_range(start: int, length: int | None) -> None:
    if start < 0 or (length is not None and length < 0):
        raise ValueError("a range starts at 0 or later and has no negative length")


def root_prefix(path: str, *, url: str) -> str:
    """The part of every object name that comes before the key: empty, or ends in `/`."""
    path = path.strip("/")
    if not path:
        return ""
    try:
        return check_key(path) + "/"
    except InvalidKey as exc:
        raise ConfigError(f"The folder in {url} cannot be used", hint=exc.hint) from exc


def known_options(options: Mapping[str, object] | None, *, allowed: frozenset[str], scheme: str) -> dict[str, object]:
    """`options` as a dictionary; a name that the store does not know is an error and not a silent no-op."""
    given = dict(options or {})
    if unknown := sorted(set(given) - allowed):
        raise ConfigError(
            f"Unknown option for a {scheme} store: {', '.join(unknown)}",
            hint=f"Known options: {', '.join(sorted(allowed)) or 'none'}.",
        )
    return given


def pause_before(attempt: int) -> float:
    """Seconds to wait before attempt number `attempt` (the first retry is 1): doubling from 0.2 s, at most 8 s, with jitter."""
    return min(8.0, 0.2 * 2.0 ** (attempt - 1)) * (0.5 + random.random() / 2)  # noqa: S311 - jitter is no secret
