"""Whether what guards a table's rows really does, and whether a new row gets in: tried by writing.

Everything is tried with a row that is there, in a transaction that is rolled back. A copy of a row must be refused by each unique and
exclusion constraint that covers it, a NULL by each NOT NULL column, a key that points nowhere by a foreign key, a value outside by a
check; a row that takes its numbers from the sequences must get in. A guard that objects before the one that is meant is taken away for
the rest of that transaction, so that each is tried by itself. What cannot be tried (no row, no value known to be wrong) is said and is no
fault: `likeness.py` has looked at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from coldstore.document import model
from coldstore.postgres.assertion import said
from coldstore.postgres.connect import Connection, errors_as
from coldstore.postgres.introspect import find, identifier
from coldstore.postgres.likeness import Finding
from coldstore.sql import query

_SQL = sql.SQL
_ALWAYS = _SQL("true")
_FIRST_ROW = _SQL("(tableoid, ctid) = (SELECT tableoid, ctid FROM {} WHERE {} LIMIT 1)")

#: Values that a check may well be against, by the category of the type.
_ODD: dict[str, tuple[str, ...]] = {
    "N": ("-32768", "32767", "-1", "0", "1"),
    "S": ("", "~", "~" * 300),
    "B": ("true", "false"),
    "D": ("1000-01-01", "9000-01-01", "infinity"),
    "U": ("null", "[]", "{}", '""', "0"),
    "A": ("{}",),
}


@dataclass(frozen=True, slots=True)
class Guard:
    """One row of the query `guards`. `kind` as in pg_constraint; a unique index counts as `u`."""

    name: str
    kind: str
    columns: list[str]
    keys: list[str]
    operators: list[str]
    expression: str | None
    nulls_too: bool
    references_table: str | None
    references_columns: list[str]


class Probe:
    """One table of a document, which is there in the database of `conn`. `sequences` are the document's."""

    def __init__(self, conn: Connection, table: model.Table, sequences: Sequence[model.Sequence]) -> None:
        self._conn = conn
        self._table = table
        self._name = identifier(table.table)
        self._stood = {s.name: s for s in sequences}
        self._oid = find(conn, [table.table])[table.table]
        self._columns = [c.name for c in table.columns if c.generated is None]
        with errors_as("look at constraints"), conn.cursor(row_factory=class_row(Guard)) as cursor:
            self._guards = cursor.execute(query("guards"), {"oid": self._oid}).fetchall()

    # --- keys ------------------------------------------------------------------------------------------------------------------

    def keys(self) -> Finding | None:
        """Each unique and exclusion constraint against a copy of a row that it covers. None where the table has none."""
        return self._each([g for g in self._guards if g.kind in "pux"], "key", self._doubled)

    def _doubled(self, guard: Guard) -> str | bool:
        if guard.operators:
            covered = [_SQL("({}) {} ({})").format(_SQL(k), _SQL(o), _SQL(k)) for k, o in zip(guard.keys, guard.operators, strict=True)]
        else:
            covered = [] if guard.nulls_too else [_SQL("({}) IS NOT NULL").format(_SQL(k)) for k in guard.keys]
        if guard.expression:
            covered.append(_SQL("({})").format(_SQL(guard.expression)))
        statement = self._copy({}, where=_SQL(" AND ").join(covered) if covered else _ALWAYS)
        return self._refused(guard, statement, "a copy of a row")

    # --- not null --------------------------------------------------------------------------------------------------------------

    def not_null(self) -> Finding | None:
        """Each NOT NULL column against a row without that value."""
        return self._each([c.name for c in self._table.columns if c.not_null and c.generated is None], "column", self._emptied)

    def _emptied(self, column: str) -> str | bool:
        statement = self._copy({column: _SQL("NULL")})
        objection = self._until(lambda: self._conn.execute(statement).rowcount, lambda _: False)
        if objection is None:
            return f"{column} took a NULL"
        return isinstance(objection, (pg.NotNullViolation, pg.CheckViolation))  # a domain or a partition's bounds may speak first

    # --- checks and foreign keys -----------------------------------------------------------------------------------------------

    def checks(self) -> Finding | None:
        """Each check and foreign key against a value outside, where one can be found."""
        return self._each([g for g in self._guards if g.kind in "cf"], "constraint", self._trespassed)

    def _trespassed(self, guard: Guard) -> str | bool:
        wrong = self._pointing_nowhere(guard) if guard.kind == "f" else self._outside(guard)
        if wrong is None:
            return False
        column, value = wrong
        whole = _SQL(" AND ").join(_SQL("{} IS NOT NULL").format(sql.Identifier(c)) for c in guard.columns)
        row = _FIRST_ROW.format(self._name, whole if guard.kind == "f" else _ALWAYS)
        statement = _SQL("UPDATE {} SET {} = {} WHERE {}").format(self._name, sql.Identifier(column), value, row)
        try:
            return self._refused(guard, statement, "a value outside")
        except (pg.DataError, pg.ProgrammingError):  # not a value of that column, or not a column that can be set
            return False

    def _pointing_nowhere(self, guard: Guard) -> tuple[str, sql.Composable] | None:
        types = self._types(guard.columns)
        for column, referenced in zip(guard.columns, guard.references_columns, strict=True):
            name, category = types[column]
            if category == "N":
                highest = _SQL("(SELECT max({}) + 1 FROM {})").format(sql.Identifier(referenced), _SQL(guard.references_table or ""))
                return column, highest
            if name == "uuid":
                return column, _SQL("pg_catalog.gen_random_uuid()")
            if category == "S":
                return column, _SQL("pg_catalog.md5(pg_catalog.random()::pg_catalog.text)")
        return None

    def _outside(self, guard: Guard) -> tuple[str, sql.Composable] | None:
        """A value that the check of one column says no to."""
        if len(guard.columns) != 1:
            return None
        (column,) = guard.columns
        name, category = self._types(guard.columns)[column]
        for odd in _ODD.get(category, ()):
            value = _SQL("{}::{}").format(sql.Literal(odd), _SQL(name))
            statement = _SQL("SELECT ({}) IS FALSE FROM (SELECT {} AS {}) AS one").format(
                _SQL(guard.expression or "true"), value, sql.Identifier(column)
            )
            try:
                with self._conn.transaction():
                    (refused,) = self._conn.execute(statement).fetchone() or (False,)
            except psycopg.Error:  # no value of the type, or of more than this column
                continue
            if refused:
                return column, value
        return None

    def _types(self, columns: list[str]) -> dict[str, tuple[str, str]]:
        """column → its type as Postgres writes it, and the type's category."""
        rows = self._conn.execute(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), t.typcategory::text FROM pg_catalog.pg_attribute a"
            " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE a.attrelid = %s AND a.attname = ANY (%s)",
            (self._oid, columns),
        ).fetchall()
        return {name: (type_name, category) for name, type_name, category in rows}

    # --- a new row -------------------------------------------------------------------------------------------------------------

    def new_row(self) -> Finding | None:
        """A row that takes its identity, its sequences' numbers and the defaults of its primary key. None where nothing is to be taken."""
        drawn = self._drawn()
        key = set(self._table.key)
        taken = [c.name for c in self._table.columns if c.name in drawn or (c.name in key and c.default is not None and not c.generated)]
        if not taken:
            return None
        ended = [s.name for s in map(self._stood.get, map(_name, drawn.values())) if s is not None and _at_its_end(s)]
        if ended:
            return Finding([f"{ended[0]} is at its end, as it was"])
        found = Finding()
        with self._sequences_kept(drawn), self._trying():
            for column, sequence in drawn.items():
                self._draw(column, sequence, found)
            if not found.problems:
                self._insert(taken, drawn, found)
        return found

    def _draw(self, column: str, sequence: dict[str, Any], found: Finding) -> None:
        """The next number must be one that no row has."""
        floor = self._floor(column, sequence, self._stood.get(_name(sequence)))
        try:
            with self._conn.transaction():
                (value,) = self._conn.execute("SELECT nextval(%s::oid::regclass)", (sequence["oid"],)).fetchone() or (0,)
        except pg.SequenceGeneratorLimitExceeded as exc:
            found.problems.append(f"no new row: {exc.diag.message_primary}")
            return
        beyond = floor is None or sequence["cycle"] or (value > floor if sequence["increment"] > 0 else value < floor)
        if not beyond:
            found.problems.append(f"{_name(sequence)} gives {value}, which is not beyond {floor}")

    def _insert(self, taken: list[str], drawn: dict[str, dict[str, Any]], found: Finding) -> None:
        """A row with the values of one that is there, but for the columns that are `taken`."""
        given = _SQL(", ").join(sql.Identifier(c) for c in self._columns if c not in taken)
        source = _SQL("({}) SELECT {} FROM {} LIMIT 1").format(given, given, self._name) if given.as_string() else _SQL("DEFAULT VALUES")
        statement = _SQL("INSERT INTO {} {}").format(self._name, source)
        steady = {c for c, s in drawn.items() if not s["cycle"]}

        def meant(guard: Guard | None) -> bool:
            return guard is not None and guard.kind in "pux" and bool(steady & set(guard.columns))

        objection = self._until(lambda: self._conn.execute(statement).rowcount, meant)
        if objection is None:
            found.seen.append(f"{', '.join(taken)} taken by a new row")
        elif isinstance(objection, pg.IntegrityError) and not isinstance(objection, pg.CheckViolation):
            found.problems.append(f"a new row is refused: {said(objection)}")
        else:  # no row to take values from, or no partition for the next number: then it was so at home
            found.seen.append("no new row could be made")

    def _drawn(self) -> dict[str, dict[str, Any]]:
        """column → the sequence that it draws from, as the query `sequences` has it."""
        with errors_as("look at sequences"), self._conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(query("sequences"), {"oids": [self._oid]}).fetchall()
            numbers = cursor.execute(
                "SELECT attnum::int AS number, attname::text AS name FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0",
                (self._oid,),
            ).fetchall()
        names = {n["number"]: n["name"] for n in numbers}
        drawing = {c.name for c in self._table.columns if c.identity or (c.default is not None and "nextval(" in c.default)}
        found: dict[str, dict[str, Any]] = {}
        for row in sorted(rows, key=lambda r: r["link"] == "drawn"):
            if names[row["number"]] in drawing:
                found.setdefault(names[row["number"]], row)
        return found

    def _floor(self, column: str, sequence: dict[str, Any], stood: model.Sequence | None) -> Any:
        """What the next value must be beyond: what rows have, or for a sequence that a default merely names where it stood."""
        last = stood.last_value if stood is not None else None
        if sequence["link"] == "drawn" and last is not None:
            return last
        extreme = _SQL("max" if sequence["increment"] > 0 else "min")
        try:
            with self._conn.transaction():
                found = self._conn.execute(_SQL("SELECT {}({}) FROM {}").format(extreme, sql.Identifier(column), self._name)).fetchone()
        except pg.UndefinedFunction:  # of a type that has no order
            return last
        return found[0] if found and isinstance(found[0], (int, Decimal)) else last

    @contextmanager
    def _sequences_kept(self, drawn: dict[str, dict[str, Any]]) -> Iterator[None]:
        """No rollback sets a sequence back."""
        stand = {}
        for sequence in drawn.values():
            name = sql.Identifier(sequence["schema"], sequence["name"])
            with errors_as("look at sequences"):
                stand[sequence["oid"]] = self._conn.execute(_SQL("SELECT last_value, is_called FROM {}").format(name)).fetchone() or (
                    0,
                    False,
                )
        yield
        for oid, (value, called) in stand.items():
            with errors_as("set sequences back"):
                self._conn.execute("SELECT setval(%s::oid::regclass, %s, %s)", (oid, value, called))

    # --- trying ----------------------------------------------------------------------------------------------------------------

    def _each(self, things: list[Any], what: str, attempt: Callable[[Any], str | bool]) -> Finding | None:
        """`attempt` gives a problem, True for a thing that did its duty, False for one that could not be tried."""
        if not things:
            return None
        found = Finding()
        outcomes: list[str | bool] = []
        for thing in things:
            with self._trying():
                outcomes.append(attempt(thing))
        found.problems += [o for o in outcomes if isinstance(o, str)]
        tried, left = outcomes.count(True), outcomes.count(False)
        plural = what if len(things) == 1 else f"{what}s"
        found.seen.append(f"{tried} of {len(things)} {plural} tried" if left else f"{tried} {plural} tried")
        return found

    @contextmanager
    def _trying(self) -> Iterator[None]:
        with errors_as("try"), self._conn.transaction(force_rollback=True):
            self._conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
            yield

    def _copy(self, instead: dict[str, sql.Composable], *, where: sql.Composable = _ALWAYS) -> sql.Composed:
        """A row once more, with other values in some columns."""
        values = [instead.get(c, sql.Identifier(c)) for c in self._columns]
        return _SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} WHERE {} LIMIT 1").format(
            self._name, _SQL(", ").join(map(sql.Identifier, self._columns)), _SQL(", ").join(values), self._name, where
        )

    def _refused(self, guard: Guard, statement: sql.Composed, what: str) -> str | bool:
        objection = self._until(lambda: self._conn.execute(statement).rowcount, lambda other: other == guard)
        if objection is None:
            return f"{guard.name} let {what} in"
        return self._guard_of(objection) == guard

    def _until(self, run: Callable[[], int], meant: Callable[[Guard | None], bool]) -> psycopg.Error | None:
        """What a guard that is `meant` says to `run`, None if nobody objects; others that object are taken away. `run` returns a number
        of rows; none is an objection too."""
        while True:
            try:
                with self._conn.transaction():
                    return None if run() else _NO_ROW
            except pg.IntegrityError as exc:
                if meant(self._guard_of(exc)) or not self._take_away(exc):
                    return exc

    def _guard_of(self, exc: psycopg.Error) -> Guard | None:
        found = self._culprit(exc)
        return next((g for g in self._guards if found and (found["oid"], found["name"]) == (self._oid, g.name)), None)

    def _culprit(self, exc: psycopg.Error) -> dict[str, Any] | None:
        named = {"schema": exc.diag.schema_name, "table": exc.diag.table_name, "name": exc.diag.constraint_name}
        if None in named.values():
            return None
        with self._conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query("culprit"), named).fetchone()

    def _take_away(self, exc: psycopg.Error) -> bool:
        found = self._culprit(exc)
        if found is None:
            return False
        if found["index"] is not None:
            self._conn.execute(_SQL("DROP INDEX {} CASCADE").format(_SQL(found["index"])))
        else:
            (table,) = self._conn.execute("SELECT %s::oid::regclass::text", (found["oid"],)).fetchone() or ("",)
            self._conn.execute(_SQL("ALTER TABLE {} DROP CONSTRAINT {} CASCADE").format(_SQL(table), sql.Identifier(found["name"])))
        return True


_NO_ROW = psycopg.Error("there is no row to try it with")


def _name(sequence: dict[str, Any]) -> model.Name:
    return model.Name(schema=sequence["schema"], name=sequence["name"])


def _at_its_end(sequence: model.Sequence) -> bool:
    if sequence.last_value is None or sequence.cycle:
        return False
    following = sequence.last_value + sequence.increment
    return not sequence.minimum <= following <= sequence.maximum
