"""An agent's own documents as rows of a snapshot, and back. Pure.

    {"name":"plan.md","text":"…"}      text
    {"name":"state","json":…}          any JSON value
    {"name":"face.png","base64":"…"}   bytes

What comes back is equal to what went in: text is text, bytes are bytes, every digit of a number stays. So what JSON would change in
silence is refused: names that are no text, `NaN`, text with half a surrogate pair, values of other types. Only a tuple comes back as a
list. `"executable":true` says that the document is a file that can be run.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import msgspec

from coldstore.document.reader import LONGEST_ROW
from coldstore.errors import CorruptDocument, InvalidMemory

_DEEPEST = 200  # readers recurse, and start from stacks of their own depth
#: What an agent keeps under one name.
Value = Any


class _Row(msgspec.Struct, frozen=True):
    name: str
    text: str | msgspec.UnsetType = msgspec.UNSET
    json: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    base64: str | msgspec.UnsetType = msgspec.UNSET
    executable: bool = False


_ROWS = msgspec.json.Decoder(_Row)
_encode = msgspec.json.Encoder().encode


def encode_note(name: str, value: Value, *, executable: bool = False) -> bytes:
    """One row. Raises `InvalidMemory` for what would not come back as it is."""
    if not isinstance(name, str):
        raise InvalidMemory(f"{name!r} cannot name a document: it is no text", hint="Use text for the names.")
    try:
        kind, body = _body(name, value)
        row = b"".join((b'{"name":', _encode(name), b',"', kind, b'":', body, b',"executable":true}' if executable else b"}"))
    except UnicodeEncodeError as exc:
        raise InvalidMemory(f"document {name!r} is not Unicode text: {exc.reason}", hint="Keep it as bytes.") from exc
    if len(row) > LONGEST_ROW:
        raise InvalidMemory(
            f"document {name!r} takes {len(row):,} bytes, and one may take {LONGEST_ROW:,}", hint="Cut it into several documents."
        )
    return row


def decode_note(row: bytes) -> tuple[str, Value, bool]:
    """The inverse of `encode_note`: name, value, whether it is an executable file. Raises `CorruptDocument`."""
    try:
        found = _ROWS.decode(row)
        if found.text is not msgspec.UNSET:
            return found.name, found.text, found.executable
        if found.base64 is not msgspec.UNSET:
            return found.name, base64.b64decode(found.base64, validate=True), found.executable
        if found.json is not msgspec.UNSET:
            return found.name, json.loads(bytes(found.json)), found.executable
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, binascii.Error, ValueError) as exc:
        raise CorruptDocument(f"a document's row cannot be read: {exc}") from exc
    raise CorruptDocument(f"document {found.name!r} has no content that this version knows", hint="Install a newer coldstore.")


def _body(name: str, value: Value) -> tuple[bytes, bytes]:
    if isinstance(value, str):
        return b"text", _encode(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return b"base64", b'"' + base64.b64encode(value) + b'"'
    return b"json", _json(name, value)


def _json(name: str, value: Value) -> bytes:
    # Python's own encoder: integers of any length stay integers, and it sees cycles.
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as exc:
        raise _cannot(name, str(exc)) from exc
    if (found := _altered(value)) is not None:
        raise _cannot(name, found)
    return text.encode()


def _cannot(name: str, why: str) -> InvalidMemory:
    return InvalidMemory(
        f"document {name!r} cannot be kept as JSON: {why}",
        hint="Keep text, bytes, or numbers, true, false, None, lists and dictionaries of those.",
    )


_LEAVES = frozenset({str, int, float, bool, type(None)})


def _altered(value: Value) -> str | None:
    """What JSON would take and give back as something else, or not at all. `value` has no cycles."""
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for each in level:
            if type(each) in _LEAVES:
                continue
            if isinstance(each, dict):
                if odd := [key for key in each if type(key) is not str]:
                    return f"the key {odd[0]!r} is no text"
                below.extend(each.values())
            elif isinstance(each, list | tuple):
                below.extend(each)
            else:
                return f"a value of type {type(each).__name__} would come back as another"
        if not below:
            return None
        level = below
    return f"it is nested more than {_DEEPEST} levels deep"
