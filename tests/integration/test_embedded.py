"""The embedded Postgres starts anywhere, lets nobody else in, and never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psycopg
import pytest

from coldstore.errors import ConfigError, DatabaseError, DatabaseUnreachable
from coldstore.postgres import embedded
from coldstore.postgres.embedded import EmbeddedPostgres


def ask(url, question):
    with psycopg.connect(url) as conn:
        return conn.execute(question).fetchone()[0]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def runs(pid):
    try:
        # A process that has ended and that nobody has asked about yet is no longer one.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return sys.platform != "linux" and subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0


def test_it_is_postgres_18_in_utf8_with_pgvector(postgres):
    assert ask(postgres.url(), "SELECT current_setting('server_version_num')::int / 10000") == 18
    assert ask(postgres.url(), "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'template1'") == "UTF8"
    assert ask(postgres.url(), "SELECT datlocale FROM pg_database WHERE datname = 'template1'") == "C.UTF-8"
    assert ask(postgres.url(), "SELECT upper('zoë')") == "ZOË"
    assert ask(postgres.url(), "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == 1


def test_its_programs_are_of_its_version(postgres):
    for program in ("pg_dump", "pg_restore", "psql"):
        said = subprocess.run([postgres.bin / program, "--version"], capture_output=True, text=True, check=True).stdout
        assert " 18." in said
    said = subprocess.run(
        [postgres.bin / "psql", postgres.url(), "-Atc", "SELECT 6 * 7"], capture_output=True, text=True, check=True
    ).stdout
    assert said == "42\n"


def test_databases_come_and_go(postgres):
    url = postgres.createdb('we/ird "name" %')
    assert ask(url, "SELECT current_database()") == 'we/ird "name" %'
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE t AS SELECT 1 AS n")
    copy = postgres.createdb("a copy", template='we/ird "name" %')
    with psycopg.connect(copy, autocommit=True) as conn:
        assert conn.execute("SELECT n FROM t").fetchone() == (1,)
        # Although somebody is connected, and although it is gone the second time.
        postgres.dropdb("a copy")
        postgres.dropdb("a copy")
    postgres.dropdb('we/ird "name" %')
    with pytest.raises(DatabaseError, match="already exists"):
        postgres.createdb("postgres")


def test_the_port_wants_the_password(postgres):
    url = postgres.url(tcp=True)
    assert ask(url, "SELECT 1") == 1
    assert ask(url, "SELECT current_setting('listen_addresses')") == "127.0.0.1"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{postgres.port}/postgres")


def test_the_socket_is_in_a_closed_folder(postgres):
    sockets = Path(ask(postgres.url(), "SELECT current_setting('unix_socket_directories')"))
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert sockets.parent.stat().st_mode & 0o777 == 0o700


@pytest.fixture(scope="module")
def tmp():
    """Not pytest's own: a folder that everybody may pass through, as far as we can choose."""
    with tempfile.TemporaryDirectory(dir=embedded._temporary_folder()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_of_the_callers_stays(tmp):
    with EmbeddedPostgres(tmp / "made" / "for it", settings={"work_mem": "7MB"}) as server:
        assert server.folder == tmp / "made" / "for it"
        assert ask(server.url(), "SHOW work_mem") == "7MB"
        assert ask(server.url(), "SHOW fsync") == "on"
        assert ask(server.url(), "SHOW listen_addresses") == ""
        with pytest.raises(ConfigError, match="no TCP port"):
            server.url(tcp=True)
        server.createdb("kept")
        with pytest.raises(ConfigError, match="is running already"):
            server.start()
        with pytest.raises(DatabaseUnreachable, match="did not start"):
            EmbeddedPostgres(server.folder).start()
        assert ask(server.url("kept"), "SELECT 1") == 1
    with EmbeddedPostgres(tmp / "made" / "for it", durable=False, tcp=True) as server:
        assert ask(server.url("kept", tcp=True), "SHOW fsync") == "off"


def test_a_folder_with_something_else_in_it_is_refused(tmp):
    (tmp / "photos").mkdir()
    (tmp / "photos" / "cat.jpg").touch()
    with pytest.raises(ConfigError, match="neither empty nor"):
        EmbeddedPostgres(tmp / "photos").start()
    assert [p.name for p in (tmp / "photos").iterdir()] == ["cat.jpg"]


def test_its_own_folder_goes():
    with EmbeddedPostgres(durable=False) as server:
        folder, pid = server.folder, server._server.pid
        work = server._work
        assert folder.is_relative_to(work)
    assert not work.exists()
    assert not runs(pid)
    server.stop()


def test_the_environment_does_not_steer_it(monkeypatch):
    for name, value in {"PGDATA": "/nowhere", "LC_ALL": "xx_XX.latin1", "TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(durable=False) as server:
        assert ask(server.url(), "SELECT reset_val FROM pg_settings WHERE name = 'log_timezone'") == "UTC"


def test_a_wrong_setting_is_told_in_the_servers_words():
    server = EmbeddedPostgres(durable=False, settings={"work_mem": "a lot"})
    with pytest.raises(DatabaseUnreachable, match="work_mem"):
        server.start()
    assert server._work is None


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        EmbeddedPostgres()
    assert caught.value.hint == "pip install 'coldstore[embedded]'"


def test_a_taken_port_is_not_the_end(monkeypatch, postgres):
    free, asked = embedded._free_port, []

    def first_taken():
        asked.append(1)
        return postgres.port if len(asked) == 1 else free()

    monkeypatch.setattr(embedded, "_free_port", first_taken)
    with EmbeddedPostgres(durable=False, tcp=True) as server:
        assert len(asked) == 2
        assert ask(server.url(tcp=True), "SELECT 1") == 1


CHILD = textwrap.dedent("""
    import os, sys, time
    from coldstore.postgres.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(sys.argv[1] or None, durable=False)
    server.start()
    print(server._server.pid, server._watcher.pid, server._work, flush=True)
    if sys.argv[2] == "exit":
        sys.exit(0)
    if sys.argv[2] == "os._exit":
        os._exit(1)
    time.sleep(600)
""")


@pytest.mark.parametrize("way", ["exit", "os._exit", signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP], ids=str)
def test_it_does_not_outlive_us(way):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "", str(way)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    server, watcher, work = child.stdout.readline().split()
    assert runs(server) or isinstance(way, str)
    if isinstance(way, signal.Signals):
        child.send_signal(way)
    child.communicate()
    wait_until(lambda: not runs(server) and not runs(watcher) and not Path(work).exists())


def test_a_killed_owner_loses_no_data_in_a_folder_of_its_own(tmp):
    folder = tmp / "killed"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), "wait"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    server, watcher, work = child.stdout.readline().split()
    child.kill()
    child.communicate()
    wait_until(lambda: not runs(server) and not runs(watcher) and not Path(work).exists())
    assert (folder / "PG_VERSION").exists()
    with EmbeddedPostgres(folder) as again:
        assert ask(again.url(), "SELECT 1") == 1


# -- what depends on who starts it: root in most containers, a person elsewhere ---------------------------------------------------------


def test_it_runs_as_somebody_who_is_not_root(postgres):
    owner = postgres.folder.stat().st_uid
    assert owner != 0
    assert owner == (embedded._nobody()[0] if os.geteuid() == 0 else os.geteuid())


@pytest.fixture
def closed(tmp, monkeypatch):
    """A folder that only its owner may enter, in which root's server user would be lost."""
    folder = Path(tempfile.mkdtemp(dir=tmp))
    folder.chmod(0o700)
    return folder


def test_a_closed_folder_is_passed_over_by_root_only(closed):
    with EmbeddedPostgres(closed / "data", durable=False) as server:
        assert (server.folder == closed / "data") == (os.geteuid() != 0)
        assert ask(server.url(), "SELECT 1") == 1


def test_a_closed_temporary_folder(closed, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    with EmbeddedPostgres(durable=False) as server:
        assert server.folder.is_relative_to(closed) == (os.geteuid() != 0)
        assert ask(server.url(), "SELECT 1") == 1


def test_a_temporary_folder_with_a_long_name(tmp, monkeypatch):
    """A socket's path has some hundred bytes of room."""
    long = tmp / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedPostgres(durable=False) as server:
        assert ask(server.url(), "SELECT 1") == 1


def test_programs_in_a_closed_folder(closed, monkeypatch):
    """As in a virtual environment below /root."""
    real = embedded._programs()
    site = real.parents[2]
    for source in (real.parent, site / f"{real.parents[1].name}.libs"):
        if source.exists():
            embedded.shutil.copytree(source, closed / source.relative_to(site), symlinks=True)
    monkeypatch.setattr(embedded, "_programs", lambda: closed / real.relative_to(site))
    with EmbeddedPostgres(durable=False) as server:
        assert server._programs.is_relative_to(closed) == (os.geteuid() != 0)
        server.createdb("db")
        with psycopg.connect(server.url("db")) as conn:
            conn.execute("CREATE EXTENSION vector")


def test_a_container_with_little_shared_memory(monkeypatch):
    monkeypatch.setattr(embedded, "_has_shared_memory", lambda: False)
    with EmbeddedPostgres(durable=False) as server:
        assert ask(server.url(), "SHOW dynamic_shared_memory_type") == "mmap"
