"""A document's schema as statements that make it elsewhere. Pure composition: nothing is executed here.

Expressions, types and definitions stand in the document in Postgres' own qualified spelling and go back as they are; only names that
a statement of ours puts together pass the composer. `Names` maps where an extension lives in another schema than it did at home.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import sql

from coldstore.document import model

_SQL = sql.SQL


@dataclass(frozen=True, slots=True)
class Names:
    """Qualified names of extension members that are called otherwise in the target: `public.vector` → `extensions.vector`."""

    moved: Mapping[str, str] = field(default_factory=dict)

    def text(self, expression: str) -> sql.SQL:
        if not self.moved:
            return sql.SQL(expression)
        # Longest first; what stands in a literal or in another quoted name is passed over.
        moved = "|".join(re.escape(name) for name in sorted(self.moved, key=len, reverse=True))
        pattern = rf"""(?<![\w".])(?:{moved})(?![\w+*/<>=~!@#%^&|`?-])|'[^']*'|"[^"]*\""""
        return sql.SQL(re.sub(pattern, lambda m: self.moved.get(m[0], m[0]), expression))


def table(
    name: sql.Identifier, columns: Iterable[model.Column], names: Names, *, unlogged: bool = False, key: str | None = None
) -> sql.Composed:
    """`CREATE TABLE` with the columns alone: defaults, identities, keys and constraints come when the rows are in."""
    items = []
    for column in columns:
        parts = [sql.Identifier(column.name), names.text(column.type)]
        if column.collation:
            parts.append(_SQL("COLLATE {}").format(_SQL(column.collation)))
        if column.generated and column.default:
            kind = "VIRTUAL" if column.generated == "virtual" else "STORED"
            parts.append(_SQL("GENERATED ALWAYS AS ({}) {}").format(names.text(column.default), _SQL(kind)))
        if column.not_null:
            parts.append(_SQL("NOT NULL"))
        items.append(_SQL(" ").join(parts))
    return _SQL("CREATE {}TABLE {} ({}){}").format(
        _SQL("UNLOGGED " if unlogged else ""),
        name,
        _SQL(", ").join(items),
        _SQL(" PARTITION BY {}").format(names.text(key)) if key else _SQL(""),
    )


def partition(name: sql.Identifier, parent: sql.Identifier, part: model.Partition, names: Names) -> sql.Composed:
    return _SQL("CREATE TABLE {} PARTITION OF {} {}{}").format(
        name, parent, names.text(part.bound), _SQL(" PARTITION BY {}").format(names.text(part.key)) if part.key else _SQL("")
    )


def type_definition(definition: model.TypeDef, names: Names) -> sql.Composed:
    name = sql.Identifier(definition.name.schema, definition.name.name)
    if definition.kind == "enum":
        return _SQL("CREATE TYPE {} AS ENUM ({})").format(name, _SQL(", ").join(sql.Literal(x) for x in definition.labels))
    if definition.kind == "composite":
        attributes = [_SQL("{} {}").format(sql.Identifier(n), names.text(t)) for n, t in definition.attributes]
        return _SQL("CREATE TYPE {} AS ({})").format(name, _SQL(", ").join(attributes))
    if definition.kind == "range":
        options = [_SQL("SUBTYPE = {}").format(names.text(definition.subtype or ""))]
        if definition.collation:
            options.append(_SQL("COLLATION = {}").format(names.text(definition.collation)))
        if definition.multirange:
            options.append(
                _SQL("MULTIRANGE_TYPE_NAME = {}").format(sql.Identifier(definition.multirange.schema, definition.multirange.name))
            )
        return _SQL("CREATE TYPE {} AS RANGE ({})").format(name, _SQL(", ").join(options))
    parts: list[sql.Composable] = [_SQL("CREATE DOMAIN {} AS {}").format(name, names.text(definition.base or ""))]
    if definition.collation:
        parts.append(_SQL("COLLATE {}").format(_SQL(definition.collation)))
    if definition.default is not None:
        parts.append(_SQL("DEFAULT {}").format(names.text(definition.default)))
    if definition.not_null:
        parts.append(_SQL("NOT NULL"))
    parts += [_SQL("CONSTRAINT {} {}").format(sql.Identifier(n), names.text(check)) for n, check in definition.checks]
    return _SQL(" ").join(parts)


def drop_type(definition: model.TypeDef) -> sql.Composed:
    kind = "DOMAIN" if definition.kind == "domain" else "TYPE"
    return _SQL("DROP {} {}").format(_SQL(kind), sql.Identifier(definition.name.schema, definition.name.name))


def sequence_options(sequence: model.Sequence) -> sql.Composed:
    return _SQL("START WITH {} INCREMENT BY {} MINVALUE {} MAXVALUE {} CACHE {} {}CYCLE").format(
        sequence.start, sequence.increment, sequence.minimum, sequence.maximum, sequence.cache, _SQL("" if sequence.cycle else "NO ")
    )


def create_sequence(sequence: model.Sequence) -> sql.Composed:
    return _SQL("CREATE SEQUENCE {} AS {} {}").format(
        sql.Identifier(sequence.name.schema, sequence.name.name), _SQL(sequence.type), sequence_options(sequence)
    )


def identity(table_name: sql.Identifier, column: model.Column, sequence: model.Sequence | None) -> sql.Composed:
    assert column.identity is not None  # noqa: S101 — callers ask only for identity columns
    options: sql.Composable = _SQL("")
    if sequence is not None:
        options = _SQL(" (SEQUENCE NAME {} {})").format(
            sql.Identifier(sequence.name.schema, sequence.name.name), sequence_options(sequence)
        )
    return _SQL("ALTER TABLE {} ALTER COLUMN {} ADD GENERATED {} AS IDENTITY{}").format(
        table_name, sql.Identifier(column.name), _SQL("ALWAYS" if column.identity.always else "BY DEFAULT"), options
    )


def alter(table_name: sql.Identifier, how: LiteralString) -> sql.Composed:
    return _SQL("ALTER TABLE {} {}").format(table_name, _SQL(how))


def constraint(table_name: sql.Identifier, found: model.Constraint, names: Names) -> sql.Composed:
    return _SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(table_name, sql.Identifier(found.name), names.text(found.definition))


def index(table_name: sql.Identifier, found: model.Index, names: Names) -> sql.Composed:
    return _SQL("CREATE {}INDEX {} ON {} USING {}").format(
        _SQL("UNIQUE " if found.unique else ""), sql.Identifier(found.name), table_name, names.text(found.using)
    )
