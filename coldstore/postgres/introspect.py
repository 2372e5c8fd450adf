"""Tables as the catalog describes them: what their rows look like as JSON, and what it takes to make them again elsewhere.

Nothing about a table's columns is assumed. For every column two things follow from its type, however nested that is:

- its *form* in a document: `json` where `to_json` is exact, `text` where it is not (types with their own cast to JSON, arrays of
  JSON, composites that contain arrays or JSON), `hex` for a pgvector where the configuration asks for it;
- its *kind* on the way back, one of the converters of `document/values.py`, or `server` where only Postgres can do it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from coldstore.document import model
from coldstore.errors import ConfigError, DatabaseError, PermissionDenied, RowSecurityActive, TableMissing
from coldstore.postgres.connect import Connection, errors_as
from coldstore.sql import query
from coldstore.tiers import Tier

_KINDS = {"r": "table", "p": "partitioned", "v": "view", "m": "materialized view", "f": "foreign table"}
#: Storage that can be read in ranges of pages.
_PAGED = frozenset({"heap"})
_JSON = frozenset({"json", "jsonb"})


@dataclass(frozen=True, slots=True)
class Leaf:
    """A relation in which rows lie. `pages` is None where it cannot be read in ranges."""

    name: model.Name
    pages: int | None
    bytes: int


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """One row of the query `types`."""

    oid: int
    schema: str
    name: str
    kind: str
    is_array: bool
    element: int
    delimiter: str
    base: int
    built_in: bool
    casts_to_json: bool
    from_extension: bool
    send: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Relation:
    """One table at run time: its description for the document, and what reading and loading it needs beyond that."""

    oid: int
    table: model.Table
    kinds: dict[str, str]  # column → converter of document/values.py
    types: dict[str, int]  # column → oid of its type
    all_types: frozenset[int]  # those and all they are made of
    arrays: frozenset[str]  # columns of arrays, behind whatever domains
    bases: dict[str, str]  # column → name of its type without domains, qualified unless built in
    sends: dict[str, str]  # column → its type's send function, for vectors
    leaves: tuple[Leaf, ...]
    raw_newlines: bool
    lockable: bool  # the role may read all of it; a role with grants on columns alone may not even lock it

    @property
    def identifier(self) -> sql.Identifier:
        return identifier(self.table.table)

    def described_as(self, table: model.Table) -> Relation:
        """The same relation under another description of its columns."""
        return replace(self, table=table)


@dataclass(slots=True)
class Catalog:
    """What was found for a set of tables, in the order asked for."""

    relations: list[Relation] = field(default_factory=list)
    schema: model.Schema = field(default_factory=lambda: model.Schema(tables=[]))


def identifier(name: model.Name) -> sql.Identifier:
    return sql.Identifier(name.schema, name.name)


def resolve(conn: Connection, names: Iterable[str]) -> dict[str, int | None]:
    """Names as people write them (`store`, `"Weird Sch"."Mem Ories"`) to oids, looked up in the role's own search_path."""
    wanted = list(names)
    with errors_as("resolve"), conn.transaction():
        conn.execute("SELECT set_config('search_path', %s, true)", (conn.role_search_path,))
        found = {}
        for name in wanted:
            try:
                with conn.transaction():
                    (found[name],) = conn.execute("SELECT to_regclass(%s)::oid::bigint", (name,)).fetchone() or (None,)
            except psycopg.errors.InsufficientPrivilege as exc:
                raise PermissionDenied(
                    f"{name}: {exc.diag.message_primary}", hint="GRANT USAGE ON SCHEMA … to the role in DATABASE_URL."
                ) from exc
            except psycopg.Error as exc:
                raise ConfigError(f"{name!r} is not a table's name", hint='Write it as in SQL: store, app.store, "Weird"."Name".') from exc
        conn.execute("SELECT set_config('search_path', '', true)")
    return found


def find(conn: Connection, names: Sequence[model.Name]) -> dict[model.Name, int]:
    """Oids of those tables that exist."""
    with errors_as("find tables"):
        rows = conn.execute(
            "SELECT n.nspname::text, c.relname::text, c.oid::bigint FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " JOIN unnest(%s::text[], %s::text[]) w (s, t) ON n.nspname = w.s AND c.relname = w.t WHERE c.relkind = ANY ('{r,p,v,m,f}')",
            ([n.schema for n in names], [n.name for n in names]),
        ).fetchall()
    return {model.Name(schema=schema, name=name): oid for schema, name, oid in rows}


def check_tiers(tiers: Sequence[Tier], oids: dict[str, int | None]) -> list[int]:
    """The oids in the order of `tiers`, or `TableMissing` for the first table that is not there."""
    found: list[int] = []
    for tier in tiers:
        oid = oids[tier.table]
        if oid is None:
            raise TableMissing(
                f"tier {tier.name!r}: there is no table {tier.table}",
                hint="Create it with `coldstore init --reference-schema`, name another with `table = …` in coldstore.toml,"
                " or switch the tier off with `enabled = false`.",
            )
        if oid in found:
            other = tiers[found.index(oid)].name
            raise ConfigError(f"tiers {other!r} and {tier.name!r} are one table, {tier.table}", hint="Declare a table once.")
        found.append(oid)
    return found


def state(conn: Connection, oids: Sequence[int], catalog: Catalog) -> str:
    """A text that stays the same as long as nobody alters the tables or their types."""
    types = sorted({t for r in catalog.relations for t in r.all_types})
    with errors_as("introspect"):
        (found,) = conn.execute(query("state"), {"oids": list(oids), "types": types}, prepare=True).fetchone() or ("",)
    return str(found)


def refresh(conn: Connection, catalog: Catalog) -> Catalog:
    """`catalog` with the sequences' values of now; for tables that were not altered since."""
    if not catalog.schema.sequences:
        return catalog
    with errors_as("introspect"):
        rows = conn.execute(
            "SELECT w.s, w.n, pg_catalog.pg_sequence_last_value(format('%%I.%%I', w.s, w.n)::regclass)"
            " FROM unnest(%s::text[], %s::text[]) w (s, n)"
            " WHERE has_sequence_privilege(format('%%I.%%I', w.s, w.n), 'USAGE, SELECT')",
            ([s.name.schema for s in catalog.schema.sequences], [s.name.name for s in catalog.schema.sequences]),
            prepare=True,
        ).fetchall()
    values = {(schema, name): value for schema, name, value in rows}
    sequences = [msgspec.structs.replace(s, last_value=values.get((s.name.schema, s.name.name))) for s in catalog.schema.sequences]
    return Catalog(catalog.relations, msgspec.structs.replace(catalog.schema, sequences=sequences))


def inspect(conn: Connection, wanted: Sequence[tuple[Tier, int]], *, vectors: str = "text", readable: bool = True) -> Catalog:
    """The tables with these oids. With `readable`, one that the role cannot read whole is refused."""
    facts = _Facts.read(conn, [oid for _, oid in wanted])
    catalog = Catalog()
    tables = []
    for tier, oid in wanted:
        if readable:
            _check_readable(facts, tier, oid)
        relation = _relation(facts, tier, oid, vectors)
        catalog.relations.append(relation)
        tables.append(relation.table)
    used = {t for r in catalog.relations for t in r.types.values()}
    catalog.schema = model.Schema(
        tables=tables,
        types=_type_definitions(facts, used),
        sequences=_sequences(facts, catalog.relations),
        extensions=[model.Extension(name=e["name"], schema=e["schema"], version=e["version"]) for e in facts.extensions],
    )
    return catalog


@dataclass(slots=True)
class _Facts:
    """Raw answers of the catalog queries, by table."""

    relations: dict[int, dict[str, Any]]
    columns: dict[int, list[dict[str, Any]]]
    types: dict[int, TypeInfo]
    constraints: dict[int, list[dict[str, Any]]]
    indexes: dict[int, list[dict[str, Any]]]
    sequences: list[dict[str, Any]]
    leaves: dict[int, list[dict[str, Any]]]
    extensions: list[dict[str, Any]]

    @classmethod
    def read(cls, conn: Connection, oids: list[int]) -> _Facts:
        with errors_as("introspect"), conn.cursor(row_factory=dict_row) as cursor:

            def rows(name: str, **more: object) -> list[dict[str, Any]]:
                return cursor.execute(query(name), {"oids": oids, **more}, prepare=True).fetchall()

            columns = rows("columns")
            types = cursor.execute(query("types"), {"types": sorted({c["type_oid"] for c in columns})}, prepare=True).fetchall()
            infos = {t["oid"]: _type_info(t) for t in types}
            return cls(
                relations={r["oid"]: r for r in rows("relations")},
                columns=_grouped(columns, "relation"),
                types=infos,
                constraints=_grouped(rows("constraints"), "relation"),
                indexes=_grouped(rows("indexes"), "relation"),
                sequences=rows("sequences"),
                leaves=_grouped(rows("leaves"), "root"),
                extensions=rows("extensions", types=sorted(infos)),
            )


def _grouped(rows: list[dict[str, Any]], by: str) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row[by]].append(row)
    return groups


def _type_info(row: dict[str, Any]) -> TypeInfo:
    names = TypeInfo.__slots__
    return TypeInfo(**{n: row[n] for n in names if n != "row"}, row=row)


def _check_readable(facts: _Facts, tier: Tier, oid: int) -> None:
    relation = facts.relations.get(oid)
    if relation is None or relation["relkind"] not in _KINDS:
        raise TableMissing(f"tier {tier.name!r}: {tier.table} is not a table or view")
    hidden = [c["name"] for c in facts.columns[oid] if not c["readable"] and c["name"] not in tier.exclude]
    if not relation["readable"] and hidden:
        raise PermissionDenied(
            f"tier {tier.name!r}: the role may not read {tier.table}", hint=f"GRANT SELECT ON {tier.table} TO the role in DATABASE_URL."
        )
    if relation["filtered"]:
        raise RowSecurityActive(
            f"tier {tier.name!r}: row-level security hides rows of {tier.table} from this role",
            hint="Use a role with BYPASSRLS or the table's owner; a filtered backup would be a partial one.",
        )


def _relation(facts: _Facts, tier: Tier, oid: int, vectors: str) -> Relation:
    relation = facts.relations[oid]
    rows = [c for c in facts.columns[oid] if c["name"] not in tier.exclude]
    missing = set(tier.exclude) - {c["name"] for c in facts.columns[oid]}
    if missing:
        raise ConfigError(f"tier {tier.name!r} excludes {sorted(missing)[0]!r}, which {tier.table} does not have")
    columns, kinds, bases, sends = [], {}, {}, {}
    for row in rows:
        info = _base(facts.types, row["type_oid"])
        form = _form(facts.types, row["type_oid"], vectors)
        columns.append(_column(facts, oid, row, form))
        kinds[row["name"]] = _kind(facts.types, row["type_oid"])
        bases[row["name"]] = info.name if info.built_in else f"{info.schema}.{info.name}"
        if form == "hex":
            sends[row["name"]] = info.send
    names = {c.name for c in columns}
    has_json = any(kinds[n] == "json" for n in names)
    table = model.Table(
        tier=tier.name,
        array=tier.array,
        table=model.Name(schema=relation["schema"], name=relation["name"]),
        kind=_KINDS[relation["relkind"]],
        columns=columns,
        constraints=[_constraint(c) for c in facts.constraints[oid] if set(c["columns"]) <= names],
        indexes=[_index(i) for i in facts.indexes[oid] if set(i["columns"]) <= names],
        partition_key=relation["partition_key"],
        partitions=_partitions(facts.leaves[oid]) if relation["relkind"] == "p" else [],
        uid_column=_owner_column(tier, tier.uid, "uid", names),
        workspace_column=_owner_column(tier, tier.workspace, "workspace_id", names),
        where=tier.where,
        excluded=list(tier.exclude),
        json_null_key=free_name("~jsonNull", names) if has_json else None,
    )
    return Relation(
        oid=oid,
        table=table,
        kinds=kinds,
        types={r["name"]: r["type_oid"] for r in rows},
        all_types=frozenset(facts.types),
        arrays=frozenset(r["name"] for r in rows if _base(facts.types, r["type_oid"]).is_array),
        bases=bases,
        sends=sends,
        leaves=_leaves(facts.leaves[oid], relation["relkind"]),
        lockable=relation["readable"],
        raw_newlines=any(_contains(facts.types, r["type_oid"], lambda t: t.built_in and t.name == "json") for r in rows),
    )


def _owner_column(tier: Tier, wished: str | None, usual: str, names: set[str]) -> str | None:
    if wished is None:
        return usual if usual in names else None
    if wished and wished not in names:
        raise ConfigError(f"tier {tier.name!r}: {tier.table} has no column {wished!r}", hint="Correct `uid` or `workspace` of the tier.")
    return wished or None


def free_name(wish: str, names: set[str]) -> str:
    """`wish`, or the next longer name that is not among `names`."""
    while wish in names:
        wish = "~" + wish
    return wish


def _column(facts: _Facts, oid: int, row: dict[str, Any], form: str) -> model.Column:
    identity = None
    if row["identity"]:
        link = next((s for s in facts.sequences if s["relation"] == oid and s["number"] == row["number"] and s["link"] == "identity"), None)
        if link:
            identity = model.Identity(always=row["identity"] == "a", sequence=model.Name(schema=link["schema"], name=link["name"]))
    return model.Column(
        name=row["name"],
        type=row["type"],
        not_null=row["not_null"],
        default=row["default_expression"],
        generated={"s": "stored", "v": "virtual"}.get(row["generated"]),
        identity=identity,
        collation=row["collation"],
        form=form,
    )


def _constraint(row: dict[str, Any]) -> model.Constraint:
    references = None
    if row["references_name"]:
        references = model.Name(schema=row["references_schema"], name=row["references_name"])
    return model.Constraint(name=row["name"], kind=row["kind"], definition=row["definition"], columns=row["columns"], references=references)


def _index(row: dict[str, Any]) -> model.Index:
    _, _, using = row["definition"].partition(row["prefix"])
    return model.Index(name=row["name"], using=using, unique=row["is_unique"])


def _partitions(rows: list[dict[str, Any]]) -> list[model.Partition]:
    return [
        model.Partition(
            table=model.Name(schema=r["schema"], name=r["name"]),
            parent=model.Name(schema=r["parent_schema"], name=r["parent_name"]),
            bound=r["bound"],
            key=r["partition_key"],
        )
        for r in rows
        if r["depth"] > 0 and r["is_partition"]
    ]


def _leaves(rows: list[dict[str, Any]], relkind: str) -> tuple[Leaf, ...]:
    found = []
    for row in rows:
        if row["relkind"] == "p":
            continue
        paged = row["method"] in _PAGED and row["relkind"] in "rm"
        name = model.Name(schema=row["schema"], name=row["name"])
        found.append(Leaf(name, row["pages"] if paged else None, row["bytes"] or 0))
    return tuple(found) if relkind in "rpfm" else tuple(found[:1])


# --- types -----------------------------------------------------------------------------------------------------------------------


def _base(types: dict[int, TypeInfo], oid: int) -> TypeInfo:
    info = types[oid]
    while info.kind == "d":
        info = types[info.base]
    return info


def _parts(info: TypeInfo) -> list[int]:
    """Types directly inside: an array's element, a composite's attributes."""
    if info.is_array:
        return [info.element]
    return [oid for _, _, oid in info.row["attributes"] or []] if info.kind == "c" else []


def _contains(types: dict[int, TypeInfo], oid: int, test: Any) -> bool:
    info = _base(types, oid)
    return bool(test(info)) or any(_contains(types, part, test) for part in _parts(info))


def _is_json(info: TypeInfo) -> bool:
    return info.built_in and info.name in _JSON


def _form(types: dict[int, TypeInfo], oid: int, vectors: str) -> str:
    info = _base(types, oid)
    if vectors == "hex" and info.from_extension and info.name == "vector":
        return "hex"
    if _contains(types, oid, lambda t: t.casts_to_json and not t.built_in):
        return "text"
    # JSON null and SQL NULL look alike inside arrays and composites; a composite's array would lose its bounds; an array of a domain
    # over arrays would look like one of two dimensions; a delimiter other than the comma is `box`'s alone.
    if info.is_array:
        element = _base(types, info.element)
        inexact = _is_json(element) or element.is_array or element.delimiter != "," or not _plain_composite(types, element)
        return "text" if inexact else "json"
    return "json" if _plain_composite(types, info) else "text"


def _plain_composite(types: dict[int, TypeInfo], info: TypeInfo) -> bool:
    """True for what is no composite, and for composites of scalars and of such composites."""
    for part in _parts(info) if info.kind == "c" else []:
        inner = _base(types, part)
        if _is_json(inner) or inner.is_array or not _plain_composite(types, inner):
            return False
    return True


def _kind(types: dict[int, TypeInfo], oid: int) -> str:
    info = _base(types, oid)
    if _is_json(info):
        return "json"
    if info.kind == "c":
        return "server"
    if info.is_array:
        element = _base(types, info.element)
        if element.kind == "c":
            return "server"
        return "json_array" if _is_json(element) else "array"
    return "bytea" if info.built_in and info.name == "bytea" else "text"


def _type_definitions(facts: _Facts, used: set[int]) -> list[model.TypeDef]:
    """Definitions of the user's own types, dependencies first."""
    done: dict[int, model.TypeDef] = {}
    visited: set[int] = set()

    def visit(oid: int) -> None:
        info = facts.types.get(oid)
        if info is None or oid in visited:
            return
        visited.add(oid)
        subtype = info.row["subtype"]
        inner = [*_parts(info), info.base, *([subtype[1]] if subtype else [])]
        for part in inner:
            visit(part)
        if info.kind == "m":
            for other in facts.types.values():
                if other.kind == "r" and other.schema == info.schema:
                    visit(other.oid)
        definition = None if info.built_in or info.from_extension or info.is_array else _type_definition(info)
        if definition:
            done[oid] = definition

    for oid in sorted(used):
        visit(oid)
    return list(done.values())


def _type_definition(info: TypeInfo) -> model.TypeDef | None:
    row = info.row
    name = model.Name(schema=info.schema, name=info.name)
    if info.kind == "e":
        return model.TypeDef(name=name, kind="enum", labels=row["labels"] or [])
    if info.kind == "d":
        return model.TypeDef(
            name=name,
            kind="domain",
            base=row["base_name"],
            collation=row["collation"],
            default=row["default_expression"],
            not_null=row["not_null"],
            checks=[(n, d) for n, d in row["checks"] or []],
        )
    if info.kind == "c":
        return model.TypeDef(name=name, kind="composite", attributes=[(n, t) for n, t, _ in row["attributes"] or []])
    if info.kind == "r":
        subtype, _, multirange_schema, multirange, collation = row["subtype"]
        own_name = model.Name(schema=multirange_schema, name=multirange)
        return model.TypeDef(name=name, kind="range", subtype=subtype, collation=collation, multirange=own_name)
    if info.kind in "mp":
        return None
    raise DatabaseError(
        f"type {info.schema}.{info.name} is a base type of no extension", hint="Exclude the column with `exclude = […]` in coldstore.toml."
    )


def _sequences(facts: _Facts, relations: list[Relation]) -> list[model.Sequence]:
    columns = {(r.oid, c["number"]): (r, c["name"]) for r in relations for c in facts.columns[r.oid]}
    found: dict[int, model.Sequence] = {}
    for row in sorted(facts.sequences, key=lambda s: s["link"] == "drawn"):
        if row["oid"] in found or (row["relation"], row["number"]) not in columns:
            continue
        relation, column = columns[row["relation"], row["number"]]
        owned = row["link"] == "owned"
        found[row["oid"]] = model.Sequence(
            name=model.Name(schema=row["schema"], name=row["name"]),
            type=row["type"],
            start=row["start"],
            increment=row["increment"],
            minimum=row["minimum"],
            maximum=row["maximum"],
            cache=row["cache"],
            cycle=row["cycle"],
            last_value=row["last_value"],
            owner_column=column if owned else None,
            owner_table=relation.table.table if owned else None,
        )
    return list(found.values())
