"""The SQL files: found, cut at their marks, cached.

They lie in the top-level `sql/` of a checkout and in `coldstore/sql/` of an installed wheel. Three shapes are read: `schema.sql` in
sections (`-- section: NAME`), `queries.sql` in named queries (`-- name: NAME`), `migrations/0001_some_name.sql` as numbered files.
Nothing is executed here and no value is put into a text: that is the driver's part. A name that is not there, a name twice or a gap
in the numbers is a fault of the installation and raises `ConfigError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coldstore.errors import ConfigError

_HERE = Path(__file__).resolve().parent
_MIGRATION = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql\Z")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from the schema of `version - 1` to that of `version`."""

    version: int
    name: str
    sql: str


@cache
def directory() -> Path:
    """The folder with the SQL files."""
    for candidate in (_HERE / "sql", _HERE.parent / "sql"):
        if (candidate / "schema.sql").is_file():
            return candidate
    raise ConfigError("the SQL files of coldstore are missing", hint="Install coldstore again: the package is incomplete.")


@cache
def text(file: str) -> str:
    """The whole of one file, `schema.sql`."""
    try:
        return (directory() / file).read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(f"the SQL file {file} is missing", hint="Install coldstore again: the package is incomplete.") from exc


def section(file: str, name: str) -> str:
    """The part of `file` from its line `-- section: name` to the next such line."""
    return _pick(file, "section", name)


def query(name: str) -> str:
    """The query of `queries.sql` under its line `-- name: name`, without a closing semicolon, so that it may stand in another."""
    return _pick("queries.sql", "name", name).rstrip().removesuffix(";")


@cache
def migrations() -> tuple[Migration, ...]:
    """Every migration, in order. Versions count from 1 without a gap, so that the highest number is also how many there are."""
    found = []
    for path in sorted((directory() / "migrations").glob("*.sql")):
        match = _MIGRATION.match(path.name)
        if match is None:
            raise ConfigError(f"the migration {path.name} is not called like 0001_some_name.sql")
        found.append(Migration(int(match["version"]), match["name"], path.read_text(encoding="utf-8")))
    if [m.version for m in found] != list(range(1, len(found) + 1)) or not found:
        raise ConfigError(
            "the migrations of coldstore are not numbered 1, 2, 3, …", hint="Install coldstore again: the package is damaged."
        )
    return tuple(found)


def _pick(file: str, mark: str, name: str) -> str:
    parts = _parts(file, mark)
    if name not in parts:
        raise ConfigError(f"{file} has no {mark} {name!r}", hint="Install coldstore again: the package is damaged.")
    return parts[name]


@cache
def _parts(file: str, mark: str) -> dict[str, str]:
    return cut(text(file), mark=mark, source=file)


def cut(whole: str, *, mark: str, source: str = "the text") -> dict[str, str]:
    """`whole` by the names on its lines `-- {mark}: NAME`; what stands above the first is a preamble and dropped."""
    pieces = re.split(rf"^--[ \t]*{re.escape(mark)}:[ \t]*(\S+)[ \t]*$", whole, flags=re.MULTILINE)
    names, bodies = pieces[1::2], pieces[2::2]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"{source} has the {mark} {twice[0]!r} twice")
    return {n: b.strip() + "\n" for n, b in zip(names, bodies, strict=True)}
