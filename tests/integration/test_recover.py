"""Real snapshots out of a real Postgres, through the reader that needs no coldstore, and back by Postgres' own COPY."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coldstore.codec.compress import Codec
from coldstore.codec.sign import SigningKey
from coldstore.keyrings.keyfile import Key, new_text
from coldstore.keyrings.local import LocalRing
from coldstore.storage.open import open_store
from coldstore.tiers import EVERYBODY, Scope
from tests.integration import anything
from tests.integration.anything import Table, quoted, tables
from tests.integration.helpers import ask, run, table_text, take, tier
from tests.integration.test_roundtrip import FIXED, refused_by_postgres
from tests.recovering import recover

KEY, SIGNER = Key.new(), SigningKey.generate()
_EXAMPLES = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "torture" else 8
_numbers = itertools.count(1)
_relaxed = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)


@pytest.fixture(scope="module")
def with_vectors(postgres):
    """A template that has pgvector and nothing else."""
    run(postgres.createdb("recover_template"), "CREATE EXTENSION vector")
    yield "recover_template"
    postgres.dropdb("recover_template")


@pytest.fixture
def vectors_database(postgres, with_vectors):
    name = f"recover_{next(_numbers)}"
    yield postgres.createdb(name, template=with_vectors)
    postgres.dropdb(name)


def taken(url: str, folder: Path, tiers, scope: Scope = EVERYBODY, *, sealed: bool = False, signed: bool = False, **options) -> list[str]:
    """A snapshot; what recover.py has to be told to read it."""
    rings = (LocalRing.parse(KEY.text(), source="test"),) if sealed else ()
    document = take(url, open_store(str(folder / "store")), tiers, scope, rings=rings, signer=SIGNER if signed else None, **options)
    (folder / "keys").write_text(new_text(KEY))
    found = [str(folder / "store"), document.manifest.id]
    found += ["--key-file", str(folder / "keys")] if sealed else []
    return found + (["--require-signature", "--trust", SIGNER.did] if signed else [])


def load(url: str, folder: Path, arguments: list[str], into: dict[str, str]) -> None:
    """The snapshot as CSV, loaded by the commands that recover.py prints, each into the table that `into` has for its file."""
    done = recover(*arguments, "--out", folder, "--format", "csv")
    assert done.returncode == 0, done.stderr
    found = re.findall(r'^COPY .+?" (\(.+?"\)) FROM \'(.+?)\' (\(FORMAT csv.+?\));$', done.stdout.decode(), re.MULTILINE | re.DOTALL)
    with psycopg.connect(url, autocommit=True) as conn:
        for columns, file, options in found:
            path = Path(file)
            statement = f"COPY {into.pop(path.name)} {columns} FROM STDIN {options}"
            with conn.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                copy.write(path.read_bytes())
    assert not into


@pytest.mark.parametrize(
    ("codec", "vectors", "sealed", "signed"),
    [("none", "text", False, False), ("gzip", "hex", False, True), ("zstd", "text", True, False), ("none", "hex", True, True)],
)
def test_every_type_comes_back_by_copy(vectors_database, tmp_path, codec, vectors, sealed, signed):
    url = vectors_database
    columns = [f"c{n} {k.sql}" for n, k in enumerate(anything.SCALARS)]
    columns += [f"a{n} {k.sql}[]" for n, k in enumerate(anything.SCALARS)]
    columns += [f"m{n} public.mixed{n}" for n in range(len(anything.SCALARS))]
    columns += [f"x{n} public.mixed{n}[]" for n in range(len(anything.SCALARS))]
    columns += [f"d{n} public.domain{n}" for n in range(len(anything.SCALARS))]
    values: list[str] = []
    for make in (
        lambda k, n: f"{FIXED[k.sql][0]}::{k.sql}",
        lambda k, n: f"ARRAY[{', '.join([FIXED[k.sql][0], 'NULL', *FIXED[k.sql][1:]])}]::{k.sql}[]",
        lambda k, n: f"ROW({FIXED[k.sql][-1]}, 'x,\"y\\')::public.mixed{n}",
        lambda k, n: f"ARRAY[ROW({FIXED[k.sql][0]}, 'x,\"y\\'), NULL, ROW(NULL, NULL)]::public.mixed{n}[]",
        lambda k, n: f"{FIXED[k.sql][-1]}::{k.sql}::public.domain{n}",
    ):
        values += [make(k, n) for n, k in enumerate(anything.SCALARS)]
    run(url, *(f"CREATE TYPE public.mixed{n} AS (v {k.sql}, t text)" for n, k in enumerate(anything.SCALARS)))
    run(url, *(f"CREATE DOMAIN public.domain{n} AS {k.sql}" for n, k in enumerate(anything.SCALARS)))
    run(
        url,
        f"CREATE TABLE everything (id serial PRIMARY KEY, {', '.join(columns)})",
        f"INSERT INTO everything VALUES (DEFAULT, {', '.join(values)})",
        "INSERT INTO everything DEFAULT VALUES",
        "CREATE TABLE again (LIKE everything)",
    )
    arguments = taken(url, tmp_path, [tier("everything")], codec=Codec(codec), vectors=vectors, sealed=sealed, signed=signed)
    load(url, tmp_path / "out", arguments, {"everything.csv": "again"})
    assert table_text(url, "public.again") == table_text(url, "public.everything")
    assert len(table_text(url, "public.again")) == 2


@_relaxed
@given(made=st.lists(tables(), min_size=1, max_size=2, unique_by=lambda t: (t.schema, t.name)), data=st.data())
def test_any_table_comes_back_by_copy(postgres, with_vectors, tmp_path_factory, made: list[Table], data):
    options = {
        "codec": Codec(data.draw(st.sampled_from(["none", "gzip", "zstd"]), label="codec")),
        "vectors": data.draw(st.sampled_from(["text", "hex"]), label="vectors"),
        "frame_size": data.draw(st.sampled_from([1, 100, 8 << 20]), label="frame size"),
        "sealed": data.draw(st.booleans(), label="sealed"),
        "signed": data.draw(st.booleans(), label="signed"),
    }
    name, folder = f"recover_{next(_numbers)}", tmp_path_factory.mktemp("recover")
    url = postgres.createdb(name, template=with_vectors)
    try:
        if refused_by_postgres([s.encode() for s in dict.fromkeys(s for t in made for s in t.setup())], url):
            return
        run(url, *(s.encode() for t in made for s in t.inserts()))
        run(url, *(f"CREATE TABLE public.{quoted(f'again {n}')} (LIKE {t.sql})".encode() for n, t in enumerate(made)))
        arguments = taken(url, folder, [tier(f"t{n}", t.sql) for n, t in enumerate(made)], **options)
        load(url, folder / "out", arguments, {f"t{n}.csv": f'public."again {n}"' for n in range(len(made))})
        for number, table in enumerate(made):
            again = table_text(url, f'public."again {number}"')
            assert again == table_text(url, table.sql)
            assert len(again) == len(table.rows)
    finally:
        postgres.dropdb(name)


def test_generated_and_identity_columns_and_rows_of_nothing(make_database, tmp_path):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a * 2) STORED, id int GENERATED ALWAYS AS IDENTITY)",
        "INSERT INTO t (a) VALUES (1), (NULL), (21)",
        "CREATE TABLE one (v text)",
        r"INSERT INTO one VALUES (NULL), (''), (E'\\.'), (E'a\n\\.\nb'), (E'\r\n'), (NULL), ('NULL')",
        "CREATE TABLE t2 (LIKE t INCLUDING ALL)",
        "CREATE TABLE one2 (LIKE one)",
    )
    load(url, tmp_path / "out", taken(url, tmp_path, [tier("t"), tier("one")]), {"t.csv": "t2", "one.csv": "one2"})
    assert table_text(url, "public.t2") == table_text(url, "public.t")
    assert table_text(url, "public.one2") == table_text(url, "public.one")


@pytest.mark.parametrize("type_name", ["json", "jsonb"])
def test_json_nested_deeper_than_a_parser_likes(make_database, tmp_path, type_name):
    url = make_database(empty=True)
    run(
        url,
        f"CREATE TABLE t (id int, v {type_name})",
        f"INSERT INTO t VALUES (1, (repeat('[', 3000) || repeat(']', 3000))::{type_name}), (2, 'null'), (3, NULL)",
        "CREATE TABLE t2 (LIKE t)",
    )
    load(url, tmp_path / "out", taken(url, tmp_path, [tier("t")]), {"t.csv": "t2"})
    assert table_text(url, "public.t2") == table_text(url, "public.t")


def test_what_postgres_itself_loads_from_the_file(make_database, tmp_path):
    """The printed command as it stands: the server reads the file."""
    url = make_database(empty=True)
    run(url, "CREATE TABLE t (id int, uid text)", "INSERT INTO t SELECT g, 'u' || g % 3 FROM generate_series(1, 1000) g")
    arguments = taken(url, tmp_path, [tier("t")], frame_size=1000)
    before = table_text(url, "public.t")
    with tempfile.TemporaryDirectory() as folder:  # the server is another user, who cannot look into the test's own folder
        out = Path(folder) / "out"
        done = recover(*arguments, "--out", out, "--format", "csv")
        (command,) = [line for line in done.stdout.decode().splitlines() if line.startswith("COPY")]
        for path in (out.parent, out, out / "t.csv"):
            path.chmod(0o755)
        run(url, "TRUNCATE t", command)
    assert table_text(url, "public.t") == before


def test_one_user_out_of_everybodys(make_database, tmp_path):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (id int, owner character(8))",
        "INSERT INTO t SELECT g, (ARRAY['ann', 'anna', NULL])[1 + g % 3] FROM generate_series(1, 300) g",
        "CREATE TABLE t2 (LIKE t)",
    )
    arguments = taken(url, tmp_path, [tier("t", uid="owner")], frame_size=500, sealed=True)
    load(url, tmp_path / "out", [*arguments, "--uid", "ann"], {"t.csv": "t2"})
    assert ask(url, "SELECT count(*), min(owner) FROM t2") == [(100, "ann     ")]
    assert table_text(url, "public.t2") == table_text(url, "public.t", where="owner = 'ann'")


def test_a_row_of_forty_megabytes(make_database, tmp_path):
    url = make_database(empty=True)
    run(
        url,
        "CREATE TABLE t (id int, body text, raw bytea)",
        "INSERT INTO t SELECT g, repeat(md5(g::text) || E'\\n\"\\\\é', 1000000), decode(repeat('00ff', 500000), 'hex') FROM generate_series(1, 1) g",
        "CREATE TABLE t2 (LIKE t)",
    )
    load(url, tmp_path / "out", taken(url, tmp_path, [tier("t")], codec=Codec("zstd")), {"t.csv": "t2"})
    assert ask(url, "SELECT id, md5(body), md5(raw) FROM t2") == ask(url, "SELECT id, md5(body), md5(raw) FROM t")
