"""The place next to the target's tables where a restore fills its own, so that nobody ever sees half of one.

Order: what earlier restores left behind when they were killed is swept; schemas `coldstore_restore_…` are made, one for each schema of
the document; missing schemas, extensions and types are made in their final place, for staged columns need them; rows are loaded; keys
and indexes are built; `publish.py` moves the tables. Whatever was made in a final place is written down in the staging schema's
comment in the same transaction, so an interrupted restore can be undone by whoever comes next.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec
import psycopg
from psycopg import sql

from coldstore.document import model
from coldstore.errors import ColdStoreError, DatabaseError, SchemaMismatch
from coldstore.postgres import ddl
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import Relation, find, inspect
from coldstore.tiers import Tier

_PREFIX = "coldstore_restore_"
_PATIENCE = "15s"  # for the server to end a process whose connection broke


class Staging:
    """Made by `open`, taken away by `drop`. Both run on the leader connection, which holds the advisory lock that says it is alive."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self.token = secrets.token_hex(6)
        self._schemas: dict[str, str] = {}
        self._undo: list[str] = []
        self.names = ddl.Names()
        self.created_types: list[model.TypeDef] = []

    def schema(self, original: str) -> str:
        """The staging schema that stands for one of the document's."""
        return self._schemas[original]

    def identifier(self, name: model.Name) -> sql.Identifier:
        return sql.Identifier(self._schemas[name.schema], name.name)

    def open(self, schema: model.Schema, *, created: Sequence[model.Table], schemas: Iterable[str]) -> None:
        """Make the schemas, and for the tables in `created` everything their columns need. All or nothing."""
        sweep(self._conn)
        conn = self._conn
        with errors_as("stage"):
            conn.execute("SELECT pg_advisory_lock(%s)", (_lock_number(self.token),))
            with self._all_or_nothing():
                # Two restores that begin at once must not both find the extension missing.
                conn.execute("SELECT pg_advisory_xact_lock(%s)", (_lock_number("0" * 12),))
                for number, original in enumerate(sorted(set(schemas))):
                    self._schemas[original] = f"{_PREFIX}{self.token}_{number}"
                    conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schemas[original])))
                if created:
                    self._make_schemas([t.table.schema for t in created] + [t.name.schema for t in schema.types])
                    self._make_extensions(schema.extensions)
                    self._make_types(schema.types)
                self._write_undo()

    def drop(self, *, published: bool) -> bool:
        """Take the staging schemas away; unless `published`, also what was made in a final place. Never raises: where the connection is
        gone it returns False, and another may `take_over`; if none does, the next restore sweeps."""
        with suppress(ColdStoreError, psycopg.Error):
            if self._conn.closed:
                return False
            with suppress(psycopg.Error):
                self._conn.execute("ROLLBACK")
            _remove(self._conn, list(self._schemas.values()), [] if published else self._undo)
            self._conn.execute("SELECT pg_advisory_unlock(%s)", (_lock_number(self.token),))
            return True
        return False

    def take_over(self, conn: Connection) -> None:
        """`drop` on another connection, once the server has noticed that ours is dead. It may have died while it published: what is in
        use by then stays."""
        conn.execute("SELECT set_config('lock_timeout', %s, false)", (_PATIENCE,))
        conn.execute("SELECT pg_advisory_lock(%s)", (_lock_number(self.token),))
        _remove(conn, list(self._schemas.values()), self._undo)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            with self._conn.transaction():
                yield
        except BaseException:
            self._schemas, self._undo, self.created_types = {}, [], []
            raise

    # --- what columns need -----------------------------------------------------------------------------------------------------

    def _make_schemas(self, names: Iterable[str]) -> None:
        for name in sorted(set(names)):
            (there,) = self._conn.execute("SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = %s", (name,)).fetchone() or (0,)
            if not there:
                self._conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
                self._remember(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(name)))

    def _make_extensions(self, extensions: Sequence[model.Extension]) -> None:
        moved: dict[str, str] = {}
        for extension in extensions:
            found = self._conn.execute(
                "SELECT quote_ident(n.nspname), e.oid::bigint, quote_ident(%s) FROM pg_catalog.pg_extension e"
                " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = %s",
                (extension.schema, extension.name),
            ).fetchone()
            if found is None:
                self._create_extension(extension)
            elif found[0] != found[2]:
                moved |= self._moved_names(found[1], found[2], found[0])
        self.names = ddl.Names(moved)

    def _create_extension(self, extension: model.Extension) -> None:
        try:
            with self._conn.transaction():
                self._make_schemas([extension.schema])
                self._conn.execute(
                    sql.SQL("CREATE EXTENSION {} WITH SCHEMA {}").format(sql.Identifier(extension.name), sql.Identifier(extension.schema))
                )
        except psycopg.Error as exc:
            raise DatabaseError(
                f"the target lacks the extension {extension.name!r} and it cannot be created: {exc.diag.message_primary}",
                hint=f"Install it on the target's server (coldstore saw version {extension.version}), or use a role that may create it.",
            ) from exc
        self._remember(sql.SQL("DROP EXTENSION {}").format(sql.Identifier(extension.name)))

    def find_names(self, schema: model.Schema) -> ddl.Names:
        """What members of the document's extensions are called in this database."""
        self._make_extensions(schema.extensions)
        return self.names

    def _moved_names(self, oid: int, old: str, new: str) -> dict[str, str]:
        """Types, functions, operators and operator classes of an extension that lives in another schema here."""
        rows = self._conn.execute(
            "SELECT DISTINCT CASE WHEN x.operator THEN x.name::text ELSE quote_ident(x.name) END"
            " FROM pg_catalog.pg_depend d CROSS JOIN LATERAL ("
            "  SELECT t.typname, false FROM pg_catalog.pg_type t WHERE d.classid = 'pg_catalog.pg_type'::regclass AND t.oid = d.objid"
            "  UNION ALL SELECT p.proname, false FROM pg_catalog.pg_proc p"
            "  WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.objid"
            "  UNION ALL SELECT o.opcname, false FROM pg_catalog.pg_opclass o"
            "  WHERE d.classid = 'pg_catalog.pg_opclass'::regclass AND o.oid = d.objid"
            "  UNION ALL SELECT o.oprname, true FROM pg_catalog.pg_operator o"
            "  WHERE d.classid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.objid"
            ") x (name, operator) WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.refobjid = %s AND d.deptype = 'e'",
            (oid,),
        ).fetchall()
        return {f"{old}.{name}": f"{new}.{name}" for (name,) in rows}

    def _make_types(self, types: Sequence[model.TypeDef]) -> None:
        for definition in types:
            there = self._conn.execute(
                "SELECT t.typtype::text, (SELECT array_agg(e.enumlabel::text) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)"
                " FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
                " WHERE n.nspname = %s AND t.typname = %s",
                (definition.name.schema, definition.name.name),
            ).fetchone()
            if there is None:
                self._conn.execute(ddl.type_definition(definition, self.names))
                self._remember(ddl.drop_type(definition))
                self.created_types.append(definition)
            elif definition.kind == "enum" and set(definition.labels) - set(there[1] or []):
                missing = sorted(set(definition.labels) - set(there[1] or []))
                raise SchemaMismatch(
                    f"the target's type {definition.name} lacks the value {missing[0]!r}",
                    hint=f"ALTER TYPE {definition.name} ADD VALUE … first.",
                )

    def _remember(self, statement: sql.Composable) -> None:
        self._undo.append(statement.as_string(self._conn))

    def _write_undo(self) -> None:
        first = min(self._schemas.values())
        note = msgspec.json.encode({"undo": self._undo}).decode()
        self._conn.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(first), sql.Literal(note)))

    # --- staged tables ---------------------------------------------------------------------------------------------------------

    def create(self, table: model.Table, columns: Sequence[model.Column], *, like: Relation | None) -> Relation:
        """An empty table for the rows of one array. `like`: the target's own table, whose types count then; such a copy is unlogged,
        for its rows are written again when they are published."""
        name = self.identifier(table.table)
        with errors_as("stage"):
            if like is not None:
                own = {c.name: c for c in like.table.columns}
                columns = [msgspec.structs.replace(own[c.name], not_null=False) for c in columns]
                self._conn.execute(ddl.table(name, columns, ddl.Names(), unlogged=True))
            else:
                key = table.partition_key if table.partitions else None
                self._conn.execute(ddl.table(name, columns, self.names, key=key))
                for part in table.partitions:
                    if part.table.schema not in self._schemas or part.parent.schema not in self._schemas:
                        raise DatabaseError(f"partition {part.table} has no place to be staged")
                    self._conn.execute(ddl.partition(self.identifier(part.table), self.identifier(part.parent), part, self.names))
        return self.look_at(table)

    def look_at(self, table: model.Table) -> Relation:
        """The staged table as the catalog sees it now, its columns written as they stand in the document."""
        name = model.Name(schema=self._schemas[table.table.schema], name=table.table.name)
        return as_in_document(self._conn, name, table)


def as_in_document(conn: Connection, name: model.Name, table: model.Table) -> Relation:
    """The table `name` as a relation whose lines look as those of the document's `table`: same columns, order and forms."""
    oid = find(conn, [name])[name]
    vectors = "hex" if any(c.form == "hex" for c in table.columns) else "text"
    relation = inspect(conn, [(Tier(table.tier, "", array=table.array), oid)], vectors=vectors, readable=False).relations[0]
    own = {c.name: c for c in relation.table.columns}
    columns = [msgspec.structs.replace(own[c.name], form=c.form) for c in table.columns if c.name in own]
    described = msgspec.structs.replace(
        relation.table,
        columns=columns,
        json_null_key=table.json_null_key or relation.table.json_null_key,
        uid_column=table.uid_column if table.uid_column in own else None,
        workspace_column=table.workspace_column if table.workspace_column in own else None,
        where=table.where,
    )
    return relation.described_as(described)


def sweep(conn: Connection) -> int:
    """Undo what restores left behind whose process is gone. Returns how many there were."""
    swept = 0
    with errors_as("sweep"):
        rows = conn.execute(
            "SELECT nspname::text, obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname LIKE %s ORDER BY 1",
            (_PREFIX.replace("_", r"\_") + "%",),
        ).fetchall()
        tokens: dict[str, list[tuple[str, str | None]]] = {}
        for name, comment in rows:
            tokens.setdefault(name.removeprefix(_PREFIX).partition("_")[0], []).append((name, comment))
        for token, found in tokens.items():
            number = _lock_number(token)
            (free,) = conn.execute("SELECT pg_try_advisory_lock(%s)", (number,)).fetchone() or (False,)
            if not free:
                continue  # a restore that is going on
            undo: list[str] = []
            for _, comment in found:
                with suppress(msgspec.MsgspecError, KeyError, TypeError):
                    undo += msgspec.json.decode(comment or "{}")["undo"]
            _remove(conn, [name for name, _ in found], undo)
            conn.execute("SELECT pg_advisory_unlock(%s)", (number,))
            swept += 1
    return swept


def _remove(conn: Connection, schemas: Sequence[str], undo: Sequence[str]) -> None:
    """Drop staging schemas, then, newest first, what stands in a final place — without CASCADE: what somebody uses by now stays."""
    with conn.transaction():
        for name in schemas:
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
        for statement in reversed(undo):
            with suppress(psycopg.Error), conn.transaction():
                conn.execute(statement)


def _lock_number(token: str) -> int:
    """The advisory lock that a restore holds while it lives; 48 bits of its token under a prefix of ours."""
    return 0x4353 << 48 | int(token, 16) if len(token) == 12 else 0
