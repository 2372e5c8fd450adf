r"""Rows into COPY's CSV, judged by readers of CSV and of array literals that are written here from Postgres' documentation."""

from __future__ import annotations

import gc
import json
import math
import struct

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coldstore.document.values import COPY_OPTIONS, NeedsServer, RowEncoder, array, bytea, hex_vector, json_array, text
from coldstore.errors import ColdStoreError, CorruptDocument, SchemaMismatch

# --- oracles -----------------------------------------------------------------------------------------------------------------------


def read_copy(data: bytes, *, columns: int) -> list[list[bytes | None]]:
    r"""What COPY makes of CSV with quote and escape \x01 and delimiter \x02: an empty field without quotes is NULL."""
    rows, at = [], 0
    while at < len(data):
        row: list[bytes | None] = []
        while True:
            if data[at : at + 1] == b"\x01":
                value, at = bytearray(), at + 1
                while True:
                    end = data.index(b"\x01", at)
                    value += data[at:end]
                    at = end + 1
                    if data[at : at + 1] != b"\x01":
                        break
                    value += b"\x01"
                    at += 1
                row.append(bytes(value))
            else:
                row.append(None)
            mark, at = data[at : at + 1], at + 1
            if mark == b"\n":
                break
            assert mark == b"\x02", (mark, data)
        assert len(row) == columns, row
        rows.append(row)
    return rows


def read_literal(literal: str) -> list:
    """What Postgres makes of an array literal without bounds: texts, None and lists."""
    at = 0

    def value() -> object:
        nonlocal at
        if literal[at] == "{":
            return items()
        if literal[at] == '"':
            at += 1
            found = ""
            while literal[at] != '"':
                at += literal[at] == "\\"
                found += literal[at]
                at += 1
            at += 1
            return found
        start = at
        while literal[at] not in ",}":
            assert literal[at] not in '{"\\ \t\n\r\v\f', literal
            at += 1
        bare = literal[start:at]
        assert bare, literal
        return None if bare.upper() == "NULL" else bare

    def items() -> list:
        nonlocal at
        at += 1
        found = []
        while literal[at] != "}":
            found.append(value())
            if literal[at] == ",":
                at += 1
                assert literal[at] != "}", literal
        at += 1
        return found

    found = value()
    assert at == len(literal), literal
    assert isinstance(found, list)
    return found


def encode_one(kind: str, raw: bytes) -> bytes | None:
    line = RowEncoder([("c", kind)]).encode(b'{"c":' + raw + b"}")
    [[value]] = read_copy(line, columns=1)
    return value


# --- strategies --------------------------------------------------------------------------------------------------------------------

#: Text with what is special to CSV, to COPY, to JSON and to array literals.
words = (
    st.lists(
        st.sampled_from(
            ["\x01", "\x02", "\n", "\r", "\t", "\\", '"', "'", ",", "{", "}", "[", "]", ":", " ", "\\.", "\\N", "\x00", "\x1f", "\x7f"]
        )
        | st.sampled_from(["é", "😀", "\u2028", "\ufffd", "a", "0", "/", "NULL"]),
        max_size=12,
    ).map("".join)
    | st.sampled_from(["", "NULL", "null", "\\.", "\n\\.\n", "\\.\n", "{}", "{NULL}", '"', '""', "\x01\x01", " a "])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
#: Ways to write the same JSON.
writers = st.sampled_from(
    [
        json.dumps,
        lambda v: json.dumps(v, ensure_ascii=False),
        lambda v: json.dumps(v, ensure_ascii=False, separators=(",", ":")),
        lambda v: json.dumps(v, separators=(" , ", " : ")),
        lambda v: json.dumps(v).replace("/", "\\/"),
    ]
)
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,60})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


# --- scalars -----------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(words, writers, st.sampled_from(["text", "array", "bytea"]))
def test_a_string_arrives_as_its_content(value, write, kind):
    assert encode_one(kind, write(value).encode()) == value.encode()


@settings(deadline=None)
@given(numbers | st.sampled_from(["true", "false", "-0.0", "1e400", "0.1000", "123456789012345678901234567890.000"]))
def test_a_number_keeps_every_digit(number):
    assert encode_one("text", number.encode()) == number.encode()


@pytest.mark.parametrize(
    ("escaped", "content"),
    [
        (r'"😀"', "😀"),
        (r'"𐀀"', "\U00010000"),
        (r'"􏿿"', "\U0010ffff"),
        (r'"a\tb\nc\rd\be\ff\/g\\h\"i"', 'a\tb\nc\rd\be\ff/g\\h"i'),
        (r'"\u0001\u0002\u000a"', "\x01\x02\n"),
        (r'"é\u00E9é"', "ééé"),
        (r'"\\."', "\\."),
        (r'"\\u0041"', "\\u0041"),
    ],
)
def test_escapes(escaped, content):
    assert encode_one("text", escaped.encode()) == content.encode()
    assert encode_one("bytea", escaped.encode()) == content.encode()
    assert read_literal(array(b"[" + escaped.encode() + b"]").decode()) == [content]


@pytest.mark.parametrize("kind", ["text", "bytea", "json", "array", "json_array", "hex"])
def test_null_is_an_empty_field(kind):
    encoder = RowEncoder([("a", kind), ("b", kind), ("c", kind)])
    assert encoder.encode(b'{"b":null,"a":null}') == b"\x02\x02\n"
    assert RowEncoder([("a", kind)]).encode(b"{}") == b"\n"


def test_an_empty_string_is_not_null():
    assert encode_one("text", b'""') == b""
    assert encode_one("text", b'"null"') == b"null"
    assert encode_one("text", b"null") is None


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_bytea(data):
    shown = "\\x" + data.hex()
    assert encode_one("bytea", json.dumps(shown).encode()) == shown.encode()
    assert encode_one("text", json.dumps(shown).encode()) == shown.encode()
    assert bytea(json.dumps(shown).encode()) == text(json.dumps(shown).encode())


# --- json --------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(json_texts.filter(lambda v: v is not None), st.sampled_from([None, 1, " "]), st.booleans())
def test_json_passes_byte_for_byte(value, indent, ascii_only):
    raw = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert encode_one("json", raw) == raw


@pytest.mark.parametrize(
    "raw", [b"1.0000000000000000000001", b"1e5", b"-0", b'{"a":1,"a":2}', b'{ "b" : [1 , 2] }', b'"\\u00e9\\/"', b"[]", b"{}", b'""']
)
def test_json_that_would_look_otherwise_if_it_were_parsed(raw):
    assert encode_one("json", raw) == raw


def test_the_row_tells_which_nulls_are_json():
    encoder = RowEncoder([("a", "json"), ("b", "json"), ("t", "text")], json_null_key="~jsonNull")
    null = b"\x01null\x01"
    assert encoder.encode(b'{"a":null,"b":null,"t":"x"}') == b"\x02\x02\x01x\x01\n"
    assert encoder.encode(b'{"a":null,"b":null,"t":"x","~jsonNull":["b"]}') == b"\x02" + null + b"\x02\x01x\x01\n"
    assert encoder.encode(b'{"a":null,"b":null,"t":null,"~jsonNull":["a","b","t"]}') == null + b"\x02" + null + b"\x02\n"
    assert encoder.encode(b'{"~jsonNull":null}') == b"\x02\x02\n"


def test_a_column_may_be_the_one_that_tells_json_nulls():
    encoder = RowEncoder([("a", "json"), ("~jsonNull", "json")], json_null_key="~~jsonNull")
    assert encoder.encode(b'{"a":null,"~jsonNull":["a"],"~~jsonNull":["a"]}') == b'\x01null\x01\x02\x01["a"]\x01\n'


# --- arrays ------------------------------------------------------------------------------------------------------------------------

leaves = st.none() | words | st.booleans() | numbers.map(lambda n: msgspec.Raw(n.encode()))


def as_json(value: object) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(as_json, value)) + "]"
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else json.dumps(value)


def as_text(value: object) -> object:
    """What Postgres must see in the place of an element."""
    if isinstance(value, list):
        return [as_text(v) for v in value]
    if isinstance(value, bool):
        return str(value).lower()
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else value


@settings(deadline=None)
@given(
    st.lists(leaves, max_size=5)
    | st.lists(st.lists(leaves, min_size=2, max_size=2), max_size=4)
    | st.lists(st.lists(st.lists(leaves, max_size=2)))
)
def test_arrays(value):
    literal = array(as_json(value).encode()).decode()
    assert read_literal(literal) == as_text(value)
    assert encode_one("array", as_json(value).encode()) == literal.encode()


@settings(deadline=None)
@given(st.lists(json_texts, max_size=4))
def test_arrays_of_json(value):
    """Each element is a JSON text of its own, an inner array too; null is SQL's."""
    found = read_literal(json_array(json.dumps(value).encode()).decode())
    assert len(found) == len(value)
    for element, wanted in zip(found, value, strict=True):
        assert element == (None if wanted is None else json.dumps(wanted))


def test_an_array_literal_in_a_string_stays():
    assert encode_one("array", b'"[0:1]={1,2}"') == b"[0:1]={1,2}"
    assert encode_one("json_array", b'"{\\"{}\\",NULL}"') == b'{"{}",NULL}'


@pytest.mark.parametrize("raw", [b'[{"f1":1}]', b'[null,{"f1":1}]', b'[[{"f1":1}]]'])
def test_arrays_of_composites_need_the_server(raw):
    with pytest.raises(NeedsServer):
        RowEncoder([("c", "array")]).encode(b'{"c":' + raw + b"}")


def test_a_vector_that_another_program_wrote_as_an_array():
    assert encode_one("text", b"[1, 2.5,-3e-2]") == b"[1, 2.5,-3e-2]"


# --- vectors -----------------------------------------------------------------------------------------------------------------------

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2**-149,
    -(2**-149),
    2**-126,
    2**-126 - 2**-149,
    3.4028234663852886e38,
    -3.4028234663852886e38,
    16777217.0,
    0.1,
    1 / 3,
]


def sent(values: list[float]) -> bytes:
    """As `vector_send` and `encode(…, 'hex')` write it."""
    return b'"' + struct.pack(f">HH{len(values)}f", len(values), 0, *values).hex().encode() + b'"'


def single(value: float) -> bytes:
    return struct.pack(">f", value)


@settings(deadline=None)
@given(st.lists(floats | st.sampled_from(EDGES), min_size=1, max_size=30))
@example(EDGES)
def test_hex_vectors_are_exact(values):
    shown = hex_vector(sent(values)).decode()
    assert shown[0] + shown[-1] == "[]"
    read = [float(v) for v in shown[1:-1].split(",")]
    assert [single(v) for v in read] == [single(v) for v in values]
    assert encode_one("hex", sent(values)) == shown.encode()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_every_float4_survives_as_nine_digits(bits):
    (value,) = struct.unpack(">f", struct.pack(">I", bits))
    shown = hex_vector(sent([value]))[1:-1].decode()
    if math.isnan(value):
        assert shown == "nan"
    else:
        assert struct.unpack(">I", single(float(shown))) == (bits,)


def test_a_long_vector():
    values = [i / 7 for i in range(16000)]
    read = [float(v) for v in hex_vector(sent(values))[1:-1].split(b",")]
    assert [single(v) for v in read] == [single(v) for v in values]


def test_a_vector_in_text_form_stays():
    assert encode_one("hex", b'"[1,2,3]"') == b"[1,2,3]"


@pytest.mark.parametrize("raw", [b'""', b'"00"', b'"0"', b'"zz"', b'"00020000"', b'"000200003f800000"', b'"\xc3\xa9"', b"1", b"true"])
def test_a_vector_that_is_none(raw):
    with pytest.raises(CorruptDocument):
        RowEncoder([("c", "hex")]).encode(b'{"c":' + raw + b"}")


# --- rows --------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.none() | words, st.none() | words, st.none() | json_texts.filter(lambda v: v is not None)), max_size=6), writers
)
def test_rows_come_out_of_copy_as_they_went_in(rows, write):
    encoder = RowEncoder([("a", "text"), ("b", "text"), ("j", "json")])
    data = b"".join(encoder.encode(write({"j": j, "a": a, "b": b}).encode()) for a, b, j in rows)
    for (a, b, j), found in zip(rows, read_copy(data, columns=3), strict=True):
        assert found == [
            None if a is None else a.encode(),
            None if b is None else b.encode(),
            None if j is None else write(j).encode(),
        ]


def test_no_line_can_be_taken_for_the_end_of_the_data():
    r"""A lone `\.` ends COPY's input before PostgreSQL 18, if a line begins with it: ours begin with a quote or with nothing."""
    for value in ("\\.", "\n\\.\n", "\\.\n"):
        assert RowEncoder([("c", "text")]).encode(json.dumps({"c": value}).encode())[:1] == b"\x01"


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=8), unique=True, min_size=1, max_size=6
    )
)
def test_columns_of_any_name(names):
    encoder = RowEncoder([(n, "text") for n in names])
    row = json.dumps({n: n for n in reversed(names)}, ensure_ascii=False)
    assert read_copy(encoder.encode(row.encode()), columns=len(names)) == [[n.encode() for n in names]]


@pytest.mark.parametrize("name", ['we"ird', "back\\slash", "new\nline", "\x01", '"'])
def test_columns_whose_name_json_escapes(name):
    encoder = RowEncoder([("id", "text"), (name, "text")], ignored=['other"'])
    row = json.dumps({"id": 1, name: "x", 'other"': 2})
    assert read_copy(encoder.encode(row.encode()), columns=2) == [[b"1", b"x"]]


@pytest.mark.parametrize("told", ["[]", "[1]"])
def test_a_row_that_tells_its_json_nulls_wrongly(told):
    encoder = RowEncoder([("a", "json")], json_null_key="~jsonNull")
    if told == "[]":
        assert encoder.encode(b'{"a":1,"~jsonNull":[]}') == b"\x011\x01\n"
    else:
        with pytest.raises(CorruptDocument):
            encoder.encode(f'{{"a":null,"~jsonNull":{told}}}'.encode())


def test_members_that_no_column_takes():
    encoder = RowEncoder([("a", "text")], ignored=["gone", "a"])
    assert encoder.encode(b'{"gone":{"x":1},"a":1}') == b"\x011\x01\n"
    with pytest.raises(SchemaMismatch, match="surprise"):
        encoder.encode(b'{"a":1,"surprise":2}')


@pytest.mark.parametrize(
    "line", [b"", b"{", b'{"c":', b"[]", b"1", b'{"c":1}x', b'{"c":"\xff"', b'{"c":tru}', b"[" * 100_000, b'{"c":01}', b"null"]
)
def test_a_line_that_is_no_row(line):
    with pytest.raises((CorruptDocument, SchemaMismatch)):
        RowEncoder([("c", "text")]).encode(line)


@pytest.mark.parametrize("kind", ["text", "bytea", "array"])
@pytest.mark.parametrize(
    "raw",
    [
        rb'"\ud800"',
        rb'"\udc00x"',
        rb'"\ud800A"',
        rb'"\x"',
        b'"\\n\xff"',
    ],
)
def test_text_that_is_no_unicode(kind, raw):
    value = b"[" + raw + b"]" if kind == "array" else raw
    with pytest.raises(CorruptDocument):
        RowEncoder([("c", kind)]).encode(b'{"c":' + value + b"}")


@settings(deadline=None, max_examples=75)
@given(st.binary(max_size=30), st.sampled_from(["text", "bytea", "json", "array", "json_array", "hex"]))
def test_any_bytes_end_in_one_of_our_errors(data, kind):
    for line in (data, b'{"c":' + data + b"}", b'{"c":"' + data + b'"}', b'{"c":["' + data + b'"]}'):
        try:
            encoded = RowEncoder([("c", kind)]).encode(line)
        except (ColdStoreError, NeedsServer):
            continue
        read_copy(encoded, columns=1)


def test_the_options_say_what_the_encoder_does():
    assert r"QUOTE E'\x01', ESCAPE E'\x01', DELIMITER E'\x02', NULL ''" in COPY_OPTIONS


def test_encoders_by_the_thousand_leave_no_classes_behind():
    """A restore makes one for each frame, and what is in a cycle waits for the collector."""

    def classes():
        return sum(c.__name__ == "Row" for c in msgspec.Struct.__subclasses__())

    gc.disable()
    try:
        RowEncoder([("of_the_thousand", "text")])
        before = classes()
        for _ in range(1000):
            RowEncoder([("of_the_thousand", "text")], ignored=()).encode(b'{"of_the_thousand":"x"}')
        assert classes() == before
    finally:
        gc.enable()
