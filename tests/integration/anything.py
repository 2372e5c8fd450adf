"""Hypothesis strategies for tables nobody designed: every type, nested any way Postgres allows, under names that need quoting.

A value is an SQL expression of its type, so that Postgres makes it and no driver stands between.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NASTY_TEXTS = [
    "", " ", "NULL", "null", "\\.", "a\n\\.\nb", "\\N", "\n", "\r\n", "\r", "\t", "\x01", "\x02", "\x01\x01\x02", "x\x01", "\x7f", "\x1b",
    '"', '""', "'", "\\", "\\\\", '\\"', "{}", "[]", "{NULL}", "[1,2]", '{"a":1}', "(,)", '("")', "a,b", "a;b", "$1", "%s", "{0}", "\u2028",
    "é", "e\u0301", "𝄞", "\ufeff", "\ud7ff", "\ue000", "\uffff", "\U0010ffff", "ẞ", "İ", "\u202eabc", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "true", "-0", "NaN", "Infinity",
]  # fmt: skip
NASTY_NAMES = [
    "row", "s", "d", "o", "w", "l", "r", "line", "select", "user", "order", "table", "f0", "f1", "owner", "~jsonNull", "~coldstore owner",
    "Mixed Case", 'a"b', "a.b", "a'b", "back\\slash", "per%cent", "%s", "{}", "{0}", "ünï", "日本", "👾", "new\nline", "tab\t", "\x01", "\x02",
    " lead", "trail ", "1st", "-", ";", "--", "/*", "$$", "E'", "uid ", "format", "null", "NULL", "__proto__", "a" * 63,
]  # fmt: skip
SYSTEM_COLUMNS = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}

#: Everything that Postgres lets into a text; it has no surrogates and no NUL.
characters = st.characters(exclude_characters="\x00", exclude_categories=("Cs",))
texts = st.sampled_from(NASTY_TEXTS) | st.text(characters, max_size=30)
names = st.sampled_from(NASTY_NAMES) | st.text(characters, min_size=1, max_size=12).filter(lambda n: n not in SYSTEM_COLUMNS)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


@dataclass(frozen=True)
class Kind:
    """A type: how it is written, its values, and the statements that make it, and those it is made of, in order."""

    sql: str
    values: SearchStrategy[str] = field(repr=False)
    setup: tuple[str, ...] = ()

    def optional(self) -> SearchStrategy[str]:
        return st.one_of(self.values, self.values, st.just(f"NULL::{self.sql}"))


def of(type_name: str, values: SearchStrategy[str]) -> Kind:
    """`values` are texts of the type."""
    return Kind(type_name, values.map(lambda v: f"{literal(v)}::{type_name}"))


# --- scalars -----------------------------------------------------------------------------------------------------------------------


def _integers(bits: int) -> SearchStrategy[str]:
    edge = 1 << (bits - 1)
    return (st.sampled_from([0, -1, edge - 1, -edge]) | st.integers(-edge, edge - 1)).map(str)


def _fixed(digits: int, scale: int) -> SearchStrategy[str]:
    return st.integers(1 - 10**digits, 10**digits - 1).map(
        lambda n: f"{'-' if n < 0 else ''}{abs(n) // 10**scale}.{abs(n) % 10**scale:0{scale}}"
    )


_numerics = st.one_of(
    _fixed(60, 30),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "0", "0.000", "-0.0", "1e-1000", "1e1000", "1.10", "100", "1E+5", "123456789012345678901234567890"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)  # fmt: skip


def _float_text(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value).replace("inf", "Infinity")


def _floats(width: int) -> SearchStrategy[str]:
    tiny = ["1e-45", "1.17549435e-38", "3.4028235e+38"] if width == 32 else ["5e-324", "2.2250738585072014e-308", "1.7976931348623157e+308"]
    return st.sampled_from(["-0.0", "NaN", "Infinity", "-Infinity", "0.1", *tiny]) | st.floats(width=width).map(_float_text)


_days = st.integers(-2_400_000, 100_000_000)
_microseconds = st.integers(0, 86_400_000_000 - 1)


def _moments(type_name: str) -> Kind:
    """Over the whole range, BC and both infinities with it."""
    base = f"{type_name} '2000-01-01 00:00:00'"
    made = st.builds(
        lambda d, m: f"({base} + make_interval(days => {d}) + {m} * interval '1 microsecond')::{type_name}", _days, _microseconds
    )
    fixed = st.sampled_from(
        ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "4713-01-01 00:00:00 BC", "epoch", "1999-12-31 23:59:59.999999"]
    )
    return Kind(type_name, made | fixed.map(lambda v: f"{literal(v)}::{type_name}"))


def _clock(microseconds: int) -> str:
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:06}"


_offsets = st.integers(-57599, 57599).map(lambda s: f"{'-' if s < 0 else '+'}{abs(s) // 3600:02}:{abs(s) // 60 % 60:02}:{abs(s) % 60:02}")
_intervals = st.one_of(
    st.builds(
        lambda months, days, us: f"{months} months {days} days {us} microseconds",
        st.integers(-(2**31) + 1, 2**31 - 1), st.integers(-(2**31) + 1, 2**31 - 1), st.integers(-(2**53), 2**53),
    ),
    st.sampled_from(["0", "-1 year +2 days -00:00:00.000001", "1 month -1 day"]),
)  # fmt: skip

_json_leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts)
_json_values = st.recursive(_json_leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=4), max_leaves=8)
_jsons = st.one_of(
    st.builds(lambda v, i, a: json.dumps(v, indent=i, ensure_ascii=a), _json_values, st.sampled_from([None, 0, 1]), st.booleans()),
    st.sampled_from(
        ["null", " null ", "\nnull\n", '"null"', '{"a":1,\n"a":2}', '{"b":\r\n[1 ,2]\t}', "1e400", "-0", "1.000", '"\\u0000"', '"\\ud83d\\ude00"',
         '"\\/"', "[]", "{}", '""', '[[[]], {"": {}}]', '{"~jsonNull":["x"]}', "12345678901234567890.123456789012345678901234567890"]
    ),
)  # fmt: skip
_jsonbs = st.one_of(
    st.builds(lambda v, a: json.dumps(v, ensure_ascii=a), _json_values, st.booleans()).filter(lambda t: "\\u0000" not in t),
    st.sampled_from(
        ["null", "1.000", "1e300", "[null]", '{"a":null}', '"\\ud83d\\ude00"', '{"~jsonNull":["x"]}', "123456789012345678901234567890.10"]
    ),
)
_coordinates = _floats(64).filter(lambda v: v != "NaN")
_points = st.builds(lambda x, y: f"({x},{y})", _coordinates, _coordinates)
_boxes = st.builds(lambda a, b: f"{a},{b}", _points, _points)
_lexemes = st.lists(texts.filter(lambda t: t != ""), max_size=4, unique=True)


def _bits(low: int, high: int) -> SearchStrategy[str]:
    return st.text("01", min_size=low, max_size=high)


_components = st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)
_halves = st.floats(-60000, 60000, width=16).map(repr)
_address = st.sampled_from(["10.1.2.3", "0.0.0.0", "255.255.255.255", "::1", "2001:db8::ff00:42:8329", "::ffff:1.2.3.4"])

SCALARS = [
    of("smallint", _integers(16)),
    of("integer", _integers(32)),
    of("bigint", _integers(64)),
    of("numeric(38,20)", _fixed(38, 20)),
    of("numeric", _numerics),
    of("real", _floats(32)),
    of("double precision", _floats(64)),
    of("text", texts),
    of("character varying(40)", texts.map(lambda t: t[:40])),
    of("character(5)", texts.map(lambda t: t[:5])),
    of("name", texts.map(lambda t: t.encode()[:63].decode(errors="ignore"))),
    of('"char"', st.sampled_from(["", "a", "\\", '"', ",", "\x01", "\\377"])),
    of("boolean", st.sampled_from(["t", "f"])),
    of("bytea", st.binary(max_size=20).map(lambda b: "\\x" + b.hex())),
    of("uuid", st.uuids().map(str)),
    Kind(
        "date",
        _days.map(lambda d: f"(date '2000-01-01' + {d})")
        | st.sampled_from(["infinity", "-infinity", "0001-01-01 BC"]).map(lambda v: f"date '{v}'"),
    ),
    _moments("timestamp without time zone"),
    _moments("timestamp with time zone"),
    of("timestamp(3) with time zone", st.sampled_from(["2026-02-26 02:00:00.123", "infinity", "0001-02-03 04:05:06.789 BC"])),
    of("time without time zone", st.just("24:00:00") | _microseconds.map(_clock)),
    of("time with time zone", st.builds(lambda m, o: _clock(m) + o, _microseconds, _offsets)),
    of("interval", _intervals),
    of("json", _jsons),
    of("jsonb", _jsonbs),
    of("bit(7)", _bits(7, 7)),
    of("bit varying", _bits(0, 20)),
    of("inet", st.builds(lambda a, b: f"{a}/{b}", _address, st.integers(0, 32))),
    of("cidr", st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::/0"])),
    of("macaddr", st.binary(min_size=6, max_size=6).map(bytes.hex)),
    of("macaddr8", st.binary(min_size=8, max_size=8).map(bytes.hex)),
    Kind("tsvector", _lexemes.map(lambda x: f"setweight(array_to_tsvector(ARRAY[{', '.join(map(literal, x))}]::text[]), 'A')")),
    of("tsquery", st.sampled_from(["'a' & !'b'", "'it''s' <-> 'x':*A", "'\\\\' | '\"'"])),
    of("point", _points),
    of("box", _boxes),
    of("lseg", _boxes.map(lambda b: f"[{b}]")),
    of("path", st.sampled_from(["((0,0),(1,1))", "[(0,0),(1.5,-1)]"])),
    of("polygon", st.sampled_from(["((0,0),(1,1),(2,0))", "((1e300,0),(1,1))"])),
    of("circle", _points.map(lambda p: f"<{p},3.5>")),
    of("money", _integers(64).map(lambda n: f"{'-' if n[0] == '-' else ''}{abs(int(n)) // 100}.{abs(int(n)) % 100:02}")),
    of("oid", st.integers(0, 2**32 - 1).map(str)),
    of("regclass", st.sampled_from(["pg_catalog.pg_class", "pg_type", "4294967295"])),
    of("regtype", st.sampled_from(["integer", "text[]", "pg_catalog.varchar"])),
    of("pg_lsn", st.sampled_from(["0/0", "FFFFFFFF/FFFFFFFF"])),
    of("xid8", st.sampled_from(["0", "18446744073709551615"])),
    of("tid", st.just("(1,2)")),
    of("jsonpath", st.sampled_from(["$.a[*] ? (@ > 1)", 'strict $."x\\"y"'])),
    of("int2vector", st.sampled_from(["", "1 2 3"])),
    of("int4range", st.sampled_from(["empty", "(,)", "[1,5)", "(,7)", "[-3,)"])),
    of("numrange", st.sampled_from(["empty", "[1.10,2.200]", "(,0.0)"])),
    of("daterange", st.sampled_from(["[-infinity,infinity]", "[2020-01-01,2020-01-01]", "(,)"])),
    of("tstzrange", st.sampled_from(['["0044-03-15 12:00:00+00 BC",infinity)', "empty", "(,2026-01-01)"])),
    of("int8multirange", st.sampled_from(["{}", "{[1,2),[5,9)}", "{(,)}"])),
    of("datemultirange", st.sampled_from(["{}", "{[2020-01-01,2021-01-01),[2022-02-02,)}"])),
    of("public.vector", st.lists(_components, min_size=1, max_size=5).map(lambda v: f"[{','.join(v)}]")),
    of("public.vector(3)", st.lists(_components, min_size=3, max_size=3).map(lambda v: f"[{','.join(v)}]")),
    of("public.halfvec(2)", st.lists(_halves, min_size=2, max_size=2).map(lambda v: f"[{','.join(v)}]")),
    of("public.sparsevec(5)", st.sampled_from(["{}/5", "{1:1.5,5:-2e-30}/5"])),
]


# --- types made of types -----------------------------------------------------------------------------------------------------------


def _with_bounds(kind: Kind, expression: str, low: int) -> str:
    """The same array, its first dimension starting at `low`."""
    return (
        f"(SELECT CASE WHEN array_ndims(a) = 1 THEN ('[' || {low} || ':' || {low} + cardinality(a) - 1 || ']=' || a::text)::{kind.sql}[]"
        f" ELSE a END FROM (SELECT {expression}) AS x (a))"
    )


def array_of(kind: Kind) -> Kind:
    item = kind.optional()
    flat = st.lists(item, max_size=4).map(lambda v: f"ARRAY[{', '.join(v)}]::{kind.sql}[]")
    rows = st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(item, min_size=n, max_size=n), min_size=1, max_size=3))
    # Elements that are arrays themselves (of a domain) would be flattened: their arrays have one dimension here.
    nested = rows.map(lambda v: f"ARRAY[{', '.join('ARRAY[' + ', '.join(r) + f']::{kind.sql}[]' for r in v)}]")
    bounded = st.builds(lambda e, low: _with_bounds(kind, e, low), flat, st.sampled_from([-3, 0, 2, 5]))
    return Kind(f"{kind.sql}[]", st.one_of(flat, flat, nested, bounded), kind.setup)


def domain_over(kind: Kind, name: str, *, checked: bool) -> Kind:
    check = ' CONSTRAINT "che\'ck" CHECK (VALUE IS NULL OR VALUE::text IS NOT NULL)' if checked else ""
    setup = (*kind.setup, f"CREATE DOMAIN {name} AS {kind.sql}{check}")
    return Kind(name, kind.values.map(lambda v: f"({v})::{name}"), setup)


def composite_of(kinds: list[Kind], attributes: list[str], name: str) -> Kind:
    inner = ", ".join(f"{quoted(a)} {k.sql}" for a, k in zip(attributes, kinds, strict=True))
    setup = (*dict.fromkeys(s for k in kinds for s in k.setup), f"CREATE TYPE {name} AS ({inner})")
    return Kind(name, st.tuples(*(k.optional() for k in kinds)).map(lambda v: f"ROW({', '.join(v)})::{name}"), setup)


def enum_of(labels: list[str], name: str) -> Kind:
    setup = (f"CREATE TYPE {name} AS ENUM ({', '.join(map(literal, labels))})",)
    return Kind(name, st.sampled_from(labels).map(lambda v: f"{literal(v)}::{name}"), setup)


def text_range(name: str) -> Kind:
    ordered = st.tuples(texts, texts).map(lambda p: sorted(p, key=lambda t: t.encode()))
    bounds = st.sampled_from(["[)", "[]", "()", "(]"])
    made = st.builds(lambda p, b: f"{name}({literal(p[0])}, {literal(p[1])}, '{b}')", ordered, bounds)
    return Kind(name, made, (f'CREATE TYPE {name} AS RANGE (SUBTYPE = text, COLLATION = "C")',))


@st.composite
def kinds(draw: st.DrawFn, depth: int = 3, *, arrays: bool = True) -> Kind:
    """Any type at all."""
    made_of = ["domain", "composite", "composite", "enum", "range"] if depth else []
    shape = draw(st.sampled_from(["scalar"] * 5 + made_of + (["array"] * 3 if depth and arrays else [])))
    if shape == "scalar":
        return draw(st.sampled_from(SCALARS))
    # Types and their arrays share one name space, and a name is cut at 63 bytes: the number keeps them apart.
    number = draw(st.integers(0, 10**9))
    made = "public." + quoted(f"{number} " + draw(names)[:8])
    if shape == "array":
        return array_of(draw(kinds(depth - 1, arrays=False)))
    if shape == "domain":
        return domain_over(draw(kinds(depth - 1)), made, checked=draw(st.booleans()))
    if shape == "composite":
        attributes = draw(st.lists(names.filter(lambda n: len(n.encode()) < 64), min_size=1, max_size=3, unique=True))
        return composite_of([draw(kinds(depth - 1)) for _ in attributes], attributes, made)
    if shape == "enum":
        return enum_of(draw(st.lists(texts.filter(lambda t: 0 < len(t.encode()) < 60), min_size=1, max_size=4, unique=True)), made)
    return text_range(made)


# --- tables ------------------------------------------------------------------------------------------------------------------------


KEYS = {
    "none": "",
    "serial": "serial PRIMARY KEY",
    "smallserial": "smallserial",
    "identity always": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "identity backwards": "integer GENERATED BY DEFAULT AS IDENTITY (INCREMENT BY -3 MAXVALUE 100 START WITH 50) UNIQUE",
    "shared": "bigint DEFAULT nextval('public.\"Shared Seq\"') UNIQUE",
    "uuid": "uuid DEFAULT gen_random_uuid() PRIMARY KEY",
}


@dataclass(frozen=True)
class Table:
    """Statements that make and fill a table, and its columns."""

    schema: str
    name: str
    columns: list[str]
    key: str
    kinds: list[Kind] = field(repr=False)
    rows: list[list[str]]

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def setup(self) -> list[str]:
        found = [f"CREATE SCHEMA IF NOT EXISTS {quoted(self.schema)}"]
        if self.key == "shared":
            found.append('CREATE SEQUENCE IF NOT EXISTS public."Shared Seq" START 7 INCREMENT 5')
        found += dict.fromkeys(s for k in self.kinds for s in k.setup)
        definitions = [f"{quoted(c)} {k.sql}" for c, k in zip(self.columns, self.kinds, strict=False)]
        if KEYS[self.key]:
            definitions.append(f"{quoted(self.columns[-1])} {KEYS[self.key]}")
        found.append(f"CREATE TABLE {self.sql} ({', '.join(definitions)})")
        return found

    def inserts(self) -> list[str]:
        return [
            f"INSERT INTO {self.sql} ({', '.join(map(quoted, self.columns[: len(row)]))}) VALUES ({', '.join(row)})" for row in self.rows
        ]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    schema = draw(st.sampled_from(["public", "Weird Sch", 'q"uote', "app", "日本"]))
    name = draw(names.filter(lambda n: len(n.encode()) < 50))
    found = draw(st.lists(kinds(), min_size=1, max_size=6))
    columns = draw(st.lists(names.filter(lambda n: len(n.encode()) < 64), min_size=len(found) + 1, max_size=len(found) + 1, unique=True))
    rows = draw(st.lists(st.tuples(*(k.optional() for k in found)).map(list), max_size=5))
    return Table(schema, name, columns, draw(st.sampled_from(list(KEYS))), found, rows)
