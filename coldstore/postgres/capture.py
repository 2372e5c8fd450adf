"""Which rows changed since a snapshot, as the database itself noted it: opt-in triggers on the tiers' tables.

Statement triggers on every table, partition and heir of a tier write (key, owner, transaction id) into `coldstore.changes`, in the
transaction that changes the rows. What an incremental snapshot holds is decided by transaction ids alone: every change that the parent's
`pg_snapshot` does not see and this moment does. No clock takes part, and a transaction that commits late is seen when it has committed.

Triggers can be dropped, switched off, or lack on a new partition, and a rewrite of a table fires none. So the *fingerprint* of triggers,
functions, columns and tree is kept with each snapshot, and a chain goes on only where it is the same.

Refuses a tier whose changes could pass unseen: without a primary key; a view, foreign or unlogged table; one that is itself a partition
or heir of a table outside the tier; one that a subscription writes into; a `where` that depends on more than the row.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec
import psycopg
from psycopg import sql as compose
from psycopg.rows import dict_row

from coldstore import sql
from coldstore.errors import ConfigError, DatabaseError
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import Catalog, Relation, check_tiers, inspect, resolve
from coldstore.postgres.migrate import LOCK
from coldstore.postgres.read import Line, copy_lines, line, scope_condition
from coldstore.tiers import Scope, Tier

_SQL, _Id, _Lit = compose.SQL, compose.Identifier, compose.Literal
_FILE = "change_capture.sql"
_EVENTS = ("insert", "update", "delete", "truncate")
_WAIT = "15s"
# Whatever the role's own default: whoever holds the floor must see the heads that were set until then.
_AS_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
_BATCH, _BATCHES = 10_000, 20

# Types whose text is the same whatever the session that writes has set. A setting pinned on a function costs at each call.
_PLAIN = re.compile(
    r"bool|boolean|smallint|integer|bigint|int[248]|oid|numeric|text|varchar|bpchar|char|name|uuid|inet|cidr|macaddr8?|bit|varbit|jsonb"
)
_SETTINGS = (
    "SET DateStyle = 'ISO, YMD' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET extra_float_digits = 1"
    " SET bytea_output = 'hex' SET lc_monetary = 'C'"
)


@dataclass(frozen=True, slots=True)
class Head:
    """The newest snapshot of a scope that the database itself knows of. `snapshot` is its `pg_snapshot`."""

    snapshot_id: str
    checksum: str
    snapshot: str


# --- the triggers ----------------------------------------------------------------------------------------------------------------


def install(conn: Connection, tiers: Sequence[Tier]) -> bool:
    """Record the changes of these tiers from now on; all of them or none. False: they were recorded already, and nothing was touched.
    Needs coldstore's own schema. Waits for writers that are under way, and gives up when one takes long."""
    oids = check_tiers(tiers, resolve(conn, [t.table for t in tiers]))
    pairs = list(zip(tiers, oids, strict=True))
    catalog = inspect(conn, pairs, readable=False)
    _refuse(conn, catalog)
    if why_not(conn, catalog) is None:
        return False
    with errors_as("change capture"), conn.transaction():
        _begin(conn)
        names = _SQL(", ").join(r.identifier for r in catalog.relations)
        _locked(conn, _SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(names))
        catalog = inspect(conn, pairs, readable=False)
        _refuse(conn, catalog)
        conn.execute(sql.section(_FILE, "install").encode())
        for relation in catalog.relations:
            _record(conn, relation, [r for r in _survey(conn, catalog) if r["root"] == relation.oid])
    return True


def remove(conn: Connection) -> None:
    """Drop triggers, functions and tables. Twice is as good as once."""
    with errors_as("change capture"), conn.transaction():
        _begin(conn)
        _locked(conn, sql.section(_FILE, "remove").encode())


def fingerprint(conn: Connection, catalog: Catalog) -> str | None:
    """A text that stays the same as long as no change of these tables can have passed unseen; None where one can pass now. Whether changes
    are recorded at all has been asked before."""
    rows = _survey(conn, catalog)
    if any(_fault(row, relation, conn) for row, relation in _paired(rows, catalog)):
        return None
    return hashlib.sha256("\n".join(r["version"] for r in rows).encode()).hexdigest()[:32]


def why_not(conn: Connection, catalog: Catalog) -> str | None:
    """Why the tables have no fingerprint, in a sentence; None when they have one."""
    if not installed(conn):
        return "the changes of this database are not recorded"
    return next((f for row, relation in _paired(_survey(conn, catalog), catalog) if (f := _fault(row, relation, conn))), None)


def installed(conn: Connection) -> bool:
    """The tables are there, and this is no standby: one does not know its own transactions."""
    with errors_as("change capture"):
        (found,) = conn.execute(
            "SELECT NOT pg_catalog.pg_is_in_recovery() AND count(*) = 2 FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'coldstore' AND c.relname IN ('changes', 'heads') AND c.relkind = 'r'",
            prepare=True,
        ).fetchone() or (False,)
    return bool(found)


def _begin(conn: Connection) -> None:
    conn.execute("SET LOCAL client_min_messages = warning")
    # A statement that waits for a lock makes all who come after it wait as well, readers too: better to give up.
    conn.execute(_SQL("SET LOCAL lock_timeout = {}").format(_Lit(_WAIT)))
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))


def _locked(conn: Connection, statement: compose.Composed | bytes) -> None:
    try:
        conn.execute(statement)
    except psycopg.errors.LockNotAvailable as exc:
        raise DatabaseError(
            "a transaction holds on to a tier's table, and nothing was changed",
            hint="Run it again when that has ended.",
            op="change capture",
        ) from exc


def _survey(conn: Connection, catalog: Catalog) -> list[dict[str, Any]]:
    """One row of the query `capture` per table, partition and heir."""
    parameters = {"oids": [r.oid for r in catalog.relations], "recorders": [f"{_recorder(r.table.tier)}()" for r in catalog.relations]}
    with errors_as("change capture"), conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(sql.query("capture"), parameters, prepare=True).fetchall()


def _paired(rows: list[dict[str, Any]], catalog: Catalog) -> Iterator[tuple[dict[str, Any], Relation]]:
    relations = {r.oid: r for r in catalog.relations}
    return ((row, relations[row["root"]]) for row in rows)


def _fault(row: dict[str, Any], relation: Relation, conn: Connection) -> str | None:
    if unfit := _unfit(row):
        return f"{row['name']} {unfit}"
    if row["events"] < len(_EVENTS) or not row["always"]:
        return f"{row['name']} has not all of the triggers that record changes, or they are switched off"
    if not relation.table.key or row["source"] != _body(conn, relation):
        return f"the triggers of {row['name']} were made for another primary key, owner or `where` of the tier"
    return None


def _unfit(row: dict[str, Any]) -> str | None:
    """What stands against recording the changes of one table, partition or heir."""
    if row["relkind"] not in "rp":
        return "is not a table, and what changes in it is not seen"
    if row["persistence"] != "p":
        return "is unlogged: a crash empties it, and no trigger tells"
    if row["outside"]:
        return f"belongs to {row['outside']}, which is not in the tier: a statement on that one changes its rows unseen"
    if row["subscribed"]:
        return "is written by a subscription, which fires no statement triggers"
    return None


def _refuse(conn: Connection, catalog: Catalog) -> None:
    for row, relation in _paired(_survey(conn, catalog), catalog):
        tier = f"tier {relation.table.tier!r}: {row['name']}"
        if unfit := _unfit(row):
            raise ConfigError(
                f"{tier} {unfit}", hint="Snapshots of it can only be full ones: leave change capture off.", op="change capture"
            )
        if not relation.table.key:
            raise ConfigError(
                f"{tier} has no primary key among the tier's columns, so its rows cannot be told apart",
                hint="Give it one, do not exclude it, or leave change capture off.",
                op="change capture",
            )
    for relation in catalog.relations:
        _require_own(conn, relation)


def _require_own(conn: Connection, relation: Relation) -> None:
    """The tier's `where` must be a matter of the row alone: otherwise rows come and go without being written. Postgres knows, and asks the
    same of an index."""
    if relation.table.where is None:
        return
    probe = _Id("pg_temp", "s")
    with suppress(psycopg.Rollback), conn.transaction():
        conn.execute(_SQL("CREATE TEMPORARY TABLE s (LIKE {})").format(relation.identifier))
        try:
            conn.execute(_SQL("CREATE INDEX ON {} ((1)) WHERE ({})").format(probe, _SQL(relation.table.where)))
        except psycopg.Error as exc:
            raise ConfigError(
                f"tier {relation.table.tier!r}: its `where` depends on more than the row itself ({exc.diag.message_primary})",
                hint="Compare columns with fixed values, or leave change capture off.",
                op="change capture",
            ) from exc
        raise psycopg.Rollback


def _record(conn: Connection, relation: Relation, tree: list[dict[str, Any]]) -> None:
    recorder = _SQL(_recorder(relation.table.tier))
    function = _SQL(sql.section(_FILE, "function")).format(
        function=recorder, settings=_SQL("" if _is_plain(relation) else _SETTINGS), body=_Lit(_body(conn, relation))
    )
    conn.execute(function)
    # Of the tier as well: a table may be an heir in two.
    names = {e: _Id(f"coldstore_{e}_{_tag(relation.table.tier)}") for e in _EVENTS}
    for row in tree:
        conn.execute(_SQL(sql.section(_FILE, "triggers")).format(table=_SQL(row["name"]), function=recorder, **names))


def _recorder(tier: str) -> str:
    """The function of a tier, as SQL names it."""
    return f'coldstore."capture_{_tag(tier)}"'


def _tag(tier: str) -> str:
    """The tier's name, or a short one that stands for it where Postgres would cut it."""
    return tier if len(tier) <= 40 else hashlib.sha256(tier.encode()).hexdigest()[:32]


def _body(conn: Connection, relation: Relation) -> str:
    table = relation.table

    def text(column: str | None) -> compose.Composable:
        return _SQL("NULL::pg_catalog.text") if column is None else _SQL("{}::pg_catalog.text").format(_Id("r", column))

    return (
        _SQL(sql.section(_FILE, "body"))
        .format(
            condition=_SQL(hashlib.sha256((table.where or "").encode()).hexdigest()[:32]),
            tier=_Lit(table.tier),
            key=_SQL("ARRAY[{}]").format(_SQL(", ").join(text(k) for k in table.key)),
            uid=text(table.uid_column),
            workspace=text(table.workspace_column),
        )
        .as_string(conn)
    )


def _is_plain(relation: Relation) -> bool:
    table = relation.table
    owners = [c for c in (table.uid_column, table.workspace_column) if c is not None]
    return all(_PLAIN.fullmatch(relation.bases[c]) for c in (*table.key, *owners))


# --- what changed ----------------------------------------------------------------------------------------------------------------


def touched(conn: Connection, scope: Scope, *, parent: str) -> dict[str, bool]:
    """Tiers of which something changed since the `pg_snapshot` of the parent that may concern the scope; True: the table was emptied, and
    all rows of the scope are to be read again."""
    with errors_as("read changes"):
        rows = conn.execute(sql.query("touched"), {"parent": parent, "uid": scope.uid, "workspace": scope.workspace}).fetchall()
    return dict(rows)


def was_truncated(conn: Connection, relation: Relation, scope: Scope, *, parent: str) -> bool:
    return touched(conn, scope, parent=parent).get(relation.table.tier, False)


def changed_query(conn: Connection, relation: Relation, scope: Scope, *, parent: str) -> compose.Composed:
    """Lines of the rows that changed since the parent, are there now, and are the scope's."""
    same = _same_key(conn, relation, _typed(relation, "c"))
    conditions = [
        _SQL("EXISTS (SELECT FROM coldstore.changes AS c WHERE {} AND {})").format(_since(relation, scope, parent), same),
        scope_condition(relation.table, scope),
    ]
    source = _SQL("{} AS s WHERE {}").format(relation.identifier, _SQL(" AND ").join(c for c in conditions if c is not None))
    return _SQL("SELECT {} FROM {}").format(*line(relation, source))


def deleted_query(conn: Connection, relation: Relation, scope: Scope, *, parent: str) -> compose.Composed:
    """Keys that changed since the parent and are not there now, or not the scope's, each as a JSON object of the key's columns."""
    keys = [next(c for c in relation.table.columns if c.name == k) for k in relation.table.key]
    changed = _SQL("(SELECT DISTINCT {} FROM coldstore.changes AS c WHERE {}) AS s").format(
        _SQL(", ").join(_SQL("{} AS {}").format(v, _Id(k.name)) for v, k in zip(_typed(relation, "c"), keys, strict=True)),
        _since(relation, scope, parent),
    )
    own = scope_condition(relation.table, scope)
    # Within brackets: a `where` means the names of its own table.
    there = _SQL("(SELECT s.* FROM {} AS s{}) AS t").format(relation.identifier, _SQL("") if own is None else _SQL(" WHERE ") + own)
    same = _same_key(conn, relation, [_Id("s", k.name) for k in keys], alias="t")
    gone = _SQL("{} WHERE NOT EXISTS (SELECT FROM {} WHERE {})").format(changed, there, same)
    only = replace(relation, table=msgspec.structs.replace(relation.table, columns=keys))
    return _SQL("SELECT {} FROM {}").format(*line(only, gone))


def changed_lines(conn: Connection, relation: Relation, scope: Scope, *, parent: str) -> Iterator[Line]:
    yield from copy_lines(conn, changed_query(conn, relation, scope, parent=parent), raw_newlines=relation.raw_newlines)


def deleted_lines(conn: Connection, relation: Relation, scope: Scope, *, parent: str) -> Iterator[Line]:
    yield from copy_lines(conn, deleted_query(conn, relation, scope, parent=parent), raw_newlines=relation.raw_newlines)


def _since(relation: Relation, scope: Scope, parent: str) -> compose.Composable:
    """The condition for the scope's changes `c` of a tier that the parent did not see. This moment sees no others than those committed."""
    owner = _SQL("" if scope.kind == "all" else " AND {} = {}").format(_Id("c", scope.kind), _Lit(scope.value))
    return _SQL(
        "c.tier = {tier} AND c.key IS NOT NULL{owner} AND c.xid >= pg_catalog.pg_snapshot_xmin({parent}::pg_catalog.pg_snapshot)"
        " AND NOT pg_catalog.pg_visible_in_snapshot(c.xid, {parent}::pg_catalog.pg_snapshot)"
    ).format(tier=_Lit(relation.table.tier), owner=owner, parent=_Lit(parent))


def _typed(relation: Relation, alias: str) -> list[compose.Composable]:
    """The recorded key's values as what the columns are."""
    columns = {c.name: c for c in relation.table.columns}
    return [
        _SQL("({}[{}])::{}{}").format(
            _Id(alias, "key"),
            _SQL(str(place)),
            _SQL(columns[k].type),
            _SQL(f" COLLATE {collation}" if (collation := columns[k].collation) else ""),
        )
        for place, k in enumerate(relation.table.key, 1)
    ]


def _same_key(conn: Connection, relation: Relation, values: Sequence[compose.Composable], *, alias: str = "s") -> compose.Composable:
    with errors_as("read changes"):
        operators = conn.execute(sql.query("key_operators"), {"oid": relation.oid}).fetchall()
    return _SQL(" AND ").join(
        _SQL("{} {} {}").format(_Id(alias, k), _SQL(operator), value)
        for k, (operator,), value in zip(relation.table.key, operators, values, strict=True)
    )


# --- heads -----------------------------------------------------------------------------------------------------------------------


def head(conn: Connection, scope: Scope) -> Head | None:
    """What an incremental snapshot of the scope may build on; in the moment of that snapshot, its changes are all there."""
    with errors_as("read head"):
        row = conn.execute(
            "SELECT snapshot_id, checksum, snapshot::text FROM coldstore.heads WHERE scope = %s", (_scope_key(scope),)
        ).fetchone()
    return None if row is None else Head(*row)


def set_head(conn: Connection, scope: Scope, new: Head) -> bool:
    """`new` is committed in the store. False: its changes may have been swept away meanwhile, and the scope has no head: the next snapshot
    of it must be a full one. The commit is on disk when this returns, and with it every transaction that the snapshot has seen: none of
    their ids can come again after a crash."""
    values = {"scope": _scope_key(scope), "id": new.snapshot_id, "checksum": new.checksum, "snapshot": new.snapshot}
    with errors_as("set head"), conn.transaction():
        conn.execute(_AS_COMMITTED)
        conn.execute("SET LOCAL synchronous_commit = local")
        if _above_floor(conn, new.snapshot):
            conn.execute(sql.query("set_head"), values)
            return True
        conn.execute("DELETE FROM coldstore.heads WHERE scope = %s", (values["scope"],))
        return False


def set_heads(conn: Connection, heads: Sequence[tuple[Scope, Head]]) -> bool:
    """All of them with one commit; whether each could be."""
    with errors_as("set heads"), conn.transaction():
        conn.execute(_AS_COMMITTED)
        known = [set_head(conn, scope, new) for scope, new in heads]
        return all(known)


def clean(conn: Connection, *, keep: timedelta = timedelta(days=7), grace: timedelta = timedelta(hours=12)) -> int:
    """Forget heads that nobody has moved for `keep`, and delete the changes that no head needs, a bounded number at a time; returns how
    many went. `grace`: how long a first snapshot may take before the changes since it began are swept away."""
    with errors_as("clean changes"):
        with conn.transaction():
            conn.execute(_AS_COMMITTED)
            conn.execute("SELECT FROM coldstore.heads WHERE scope = 'floor' FOR UPDATE")
            (now,) = conn.execute("SELECT pg_catalog.pg_current_snapshot()::text").fetchone() or ("",)
            _above_floor(conn, now)
            conn.execute(
                "DELETE FROM coldstore.heads WHERE scope NOT IN ('floor', 'next floor') AND taken_at < clock_timestamp() - %s", (keep,)
            )
            conn.execute(sql.query("move_floor"), {"grace": grace})
            conn.execute(sql.query("note_floor"), {"grace": grace})
        gone = 0
        for _ in range(_BATCHES):
            swept = conn.execute(sql.query("sweep"), {"limit": _BATCH}).rowcount
            gone += swept
            if swept < _BATCH:
                break
    return gone


def _above_floor(conn: Connection, snapshot: str) -> bool:
    """Nothing that came after `snapshot` can have been swept away. Nobody moves the floor until the transaction ends; where the tables came
    with a copy of a database, it starts there."""
    own, above = conn.execute(sql.query("capture_floor"), {"snapshot": snapshot}).fetchone() or (True, False)
    if not own:
        conn.execute(sql.query("adopt_capture"), {"snapshot": snapshot})
    return bool(above or not own)


def _scope_key(scope: Scope) -> str:
    key = f"{scope.kind}:{scope.value}"
    # An index has no room for a name of more than some 2,700 bytes.
    return key if len(key) <= 500 else f"{scope.kind}~{hashlib.sha256(scope.value.encode()).hexdigest()}"
