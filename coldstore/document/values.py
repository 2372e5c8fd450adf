r"""A row's JSON into the text that COPY takes, exactly: the inverse of what `row_to_json` did. Pure.

`msgspec` splits a line into the raw bytes of its members without parsing them. Strings are unescaped; numbers, booleans and JSON
values pass through byte for byte, so every digit stays. The result is CSV whose quote is \x01 and whose delimiter is \x02: those two
hardly ever occur in a value, so almost nothing has to be escaped, and a quote that does occur is doubled.

A column is one of five kinds:

    text   every scalar type: the string's content, or the number as it stands
    bytea  a string that always begins with an escaped backslash; unescaping it is one slice
    json   json and jsonb: the value's own JSON text
    array  a JSON array into an array literal; a string is a literal already
    hex    a pgvector's binary form in hexadecimal digits

What none of them can do exactly (composites, arrays of composites) raises `NeedsServer`: such a column is loaded through Postgres' own
`json_to_record`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from coldstore.errors import CorruptDocument, SchemaMismatch

QUOTE = b"\x01"
DELIMITER = b"\x02"
#: The options that make COPY read what `RowEncoder` writes.
COPY_OPTIONS = r"FORMAT csv, QUOTE E'\x01', ESCAPE E'\x01', DELIMITER E'\x02', NULL '', ENCODING 'UTF8'"

_NULL = b"null"
_BLANKS = b" \t\r\n"
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MEMBER = re.compile(rb"[\s,{]*(" + _STRING + rb")\s*:\s*")
_MARK = re.compile(_STRING + rb"|[{}\[\],]")
_UNUSUAL = re.compile(r'["\\\x00-\x1f]')
_decode = msgspec.json.decode


class NeedsServer(Exception):
    """The value cannot be turned into text here; Postgres itself has to."""


def _unquote(raw: bytes) -> bytes:
    """The content of a JSON string, or the bytes of any other scalar."""
    if raw[:1] != b'"':
        if raw[:1] in b"{[":
            raise NeedsServer
        return raw
    return raw[1:-1] if b"\\" not in raw else _decode(raw, type=str).encode("utf-8", "surrogatepass")


def text(raw: bytes) -> bytes:
    """A scalar's text form. An object or array stands for itself: other programs write a vector as a JSON array, for one."""
    if raw[:1] != b'"':
        return raw
    return raw[1:-1] if b"\\" not in raw else _decode(raw, type=str).encode("utf-8", "surrogatepass")


def bytea(raw: bytes) -> bytes:
    r"""`"\\x6162"` → `\x6162`."""
    if raw[:4] == b'"\\\\x':
        return raw[2:-1]
    return text(raw)


def json_text(raw: bytes) -> bytes:
    return raw


def array(raw: bytes, *, json_elements: bool = False) -> bytes:
    """A JSON array, nested or not, as an array literal. Elements are quoted, so none can be taken for NULL or for syntax."""
    if raw[:1] != b"[":
        return text(raw)
    out: list[bytes] = []
    _array_into(out, raw, json_elements)
    return b"".join(out)


def json_array(raw: bytes) -> bytes:
    return array(raw, json_elements=True)


def _array_into(out: list[bytes], raw: bytes, json_elements: bool) -> None:
    out.append(b"{")
    for number, element in enumerate(_decode(raw, type=list[msgspec.Raw])):
        if number:
            out.append(b",")
        item = bytes(element)
        if item == _NULL:
            out.append(b"NULL")
        elif item[:1] == b"[" and not json_elements:
            _array_into(out, item, json_elements)
        elif item[:1] == b'"' or json_elements:
            content = item if json_elements else _unquote(item)
            out.append(b'"' + content.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"')
        else:
            out.append(_unquote(item))
    out.append(b"}")


def hex_vector(raw: bytes) -> bytes:
    """`vector_send` in hexadecimal digits (int16 dimensions, int16 unused, then big-endian float4) as `[x,y,…]`. Nine significant
    digits give back every float4 exactly."""
    if raw[:2] == b'"[':
        return text(raw)
    try:
        data = bytes.fromhex(raw[1:-1].decode("ascii"))
        (size, _) = struct.unpack_from(">HH", data)
        values = struct.unpack_from(f">{size}f", data, 4)
    except (ValueError, struct.error) as exc:
        raise CorruptDocument(f"a vector is not in hexadecimal form: {exc}") from exc
    return b"[" + ",".join(["%.9g" % v for v in values]).encode("ascii") + b"]"  # noqa: UP031 — an f-string is a third slower here


def copy_field(value: bytes) -> bytes:
    """One field of a COPY line."""
    return QUOTE + (value.replace(QUOTE, b"\x01\x01") if QUOTE in value else value) + QUOTE


Converter = Callable[[bytes], bytes]
CONVERTERS: dict[str, Converter] = {
    "text": text,
    "bytea": bytea,
    "json": json_text,
    "array": array,
    "json_array": json_array,
    "hex": hex_vector,
}


def splitter(names: Sequence[str], *, strict: bool) -> Callable[[bytes], Sequence[Any]]:
    """A function that cuts a row into the raw bytes of its members `names`, `null` for one that is not there. `strict`: a member that
    is not among them is a `msgspec.ValidationError`. The same one for the same names: it holds nothing, and threads may share it."""
    return _splitter(tuple(names), strict)


# Each makes a class, which nothing but a collection of cycles frees: one for each frame would add up.
@lru_cache(maxsize=256)
def _splitter(names: tuple[str, ...], strict: bool) -> Callable[[bytes], Sequence[Any]]:
    def pick(members: Mapping[str, Any]) -> Sequence[Any]:
        if strict and members.keys() - known:
            raise msgspec.ValidationError(f"Object contains unknown field `{min(members.keys() - known)}`")
        return [members.get(name, _NULL) for name in names]

    known = set(names)
    if any(_UNUSUAL.search(name) for name in names):  # which a struct of msgspec cannot have as a member; a dict can, slower
        return lambda line: pick(_members_of(line))
    fields = [(f"f{i}", msgspec.Raw, msgspec.Raw(_NULL)) for i in range(len(names))]
    row = msgspec.defstruct("Row", fields, rename={f"f{i}": n for i, n in enumerate(names)}, forbid_unknown_fields=strict)
    decode = msgspec.json.Decoder(row).decode

    def split(line: bytes) -> Sequence[Any]:
        try:
            return msgspec.structs.astuple(decode(line))
        except RecursionError:
            return pick(_members_of_deep(line))

    return split


def _members_of(line: bytes) -> Mapping[str, Any]:
    """A row's members by name, each in its raw bytes."""
    try:
        return _decode(line, type=dict[str, msgspec.Raw])
    except RecursionError:
        return _members_of_deep(line)


def _members_of_deep(line: bytes) -> dict[str, bytes]:
    """The same without recursion, for a row nested deeper than msgspec follows: Postgres takes thousands of levels."""
    return {name: line[start:end].strip(_BLANKS) for name, start, end in _spans(line)}


def _spans(line: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of each member's value in a row."""
    end = 0
    while member := _MEMBER.match(line, end):
        depth = 0
        for mark in _MARK.finditer(line, member.end()):
            depth += (mark[0] in _OPENING) - (mark[0] in _CLOSING)
            if depth < 0 or (depth == 0 and mark[0] == b","):
                break
        else:
            raise msgspec.DecodeError("the row ends too early")
        end = mark.start()
        yield _decode(member[1], type=str), member.end(), end


def rewriter(changes: Mapping[str, Callable[[bytes], bytes]]) -> Callable[[bytes], bytes]:
    """A function that gives some members of a row another raw value; every other byte stays."""

    def rewrite(line: bytes) -> bytes:
        pieces, done = [], 0
        for name, start, end in _spans(line):
            if change := changes.get(name):
                pieces += [line[done:start], change(line[start:end])]
                done = end
        return b"".join([*pieces, line[done:]])

    return rewrite


class RowEncoder:
    """Rows of one table into COPY lines. `columns` are (member of the row, kind); members of the row that are not among them or in
    `ignored` are a `SchemaMismatch`, for a value nobody stores is a value lost."""

    def __init__(self, columns: Sequence[tuple[str, str]], *, ignored: Sequence[str] = (), json_null_key: str | None = None) -> None:
        names = [name for name, _ in columns]
        self._json_null_key = json_null_key
        self._columns = names
        self._converters = [CONVERTERS[kind] for _, kind in columns]
        self._json_positions = {name: i for i, (name, kind) in enumerate(columns) if kind == "json"}
        members = [*names, *(i for i in ignored if i not in names)]
        if json_null_key and json_null_key not in members:
            members.append(json_null_key)
        self._split = splitter(members, strict=True)
        self._null_position = members.index(json_null_key) if json_null_key else -1

    def encode(self, line: bytes) -> bytes:
        """One COPY line with its newline. NULL is an empty field without quotes."""
        try:
            fields = self._split(line)
        except msgspec.ValidationError as exc:
            raise SchemaMismatch(f"a row does not fit the table: {exc}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise CorruptDocument(f"a row is not JSON: {exc}") from exc
        try:
            return self._line(fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise CorruptDocument(f"a value is not what JSON calls text: {exc}") from exc

    def _line(self, fields: Sequence[Any]) -> bytes:
        out = []
        for raw, convert in zip(fields, self._converters, strict=False):
            value = bytes(raw)
            out.append(b"" if value == _NULL else copy_field(convert(value)))
        if self._null_position >= 0 and bytes(fields[self._null_position]) != _NULL:
            for name in _decode(bytes(fields[self._null_position]), type=list[str]):
                if name in self._json_positions:
                    out[self._json_positions[name]] = QUOTE + _NULL + QUOTE
        return DELIMITER.join(out) + b"\n"
