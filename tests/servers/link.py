"""A link of a given latency and bandwidth, byte for byte otherwise: `shaped_link("http://127.0.0.1:9000", latency_ms=30, bytes_per_second=40e6)`.

Works below HTTP, so it serves any protocol and changes no byte (signatures stay valid). Each connection has its own bandwidth, as it has
towards a cloud store, and each direction half of the latency. A new connection costs one round trip more, as a handshake does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.servers.process import free_port, running_module

PIECE = 64 * 1024


@contextlib.contextmanager
def shaped_link(target: str, *, latency_ms: float = 30.0, bytes_per_second: float = 40e6) -> Iterator[str]:
    """The address at which `target` (an http URL or host:port) is reached through the link."""
    parts = urlsplit(target if "//" in target else f"//{target}")
    port = free_port()
    arguments = [str(port), str(parts.hostname), str(parts.port), str(latency_ms), str(bytes_per_second)]
    with running_module("tests.servers.link", *arguments, ports=[port]):
        yield f"{parts.scheme}://127.0.0.1:{port}" if parts.scheme else f"127.0.0.1:{port}"


class _Direction:
    """Bytes one way: taken in at the link's rate, handed on half a round trip later, never more on the way than the link holds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delay: float, rate: float) -> None:
        self._reader, self._writer, self._delay, self._rate = reader, writer, delay, rate
        self._flying: deque[tuple[float, bytes]] = deque()
        self._changed = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        await asyncio.gather(self._take(), self._hand_on())

    async def _take(self) -> None:
        now = asyncio.get_running_loop().time
        free = now()
        try:
            while piece := await self._reader.read(PIECE):
                free = max(free, now()) + len(piece) / self._rate
                self._flying.append((free + self._delay, piece))
                self._changed.set()
                if (ahead := free - now()) > 0.002:
                    await asyncio.sleep(ahead)
        except ConnectionError:
            pass
        self._ended = True
        self._changed.set()

    async def _hand_on(self) -> None:
        now = asyncio.get_running_loop().time
        while self._flying or not self._ended:
            if not self._flying:
                self._changed.clear()
                await self._changed.wait()
                continue
            due, piece = self._flying.popleft()
            if (wait := due - now()) > 0.0005:
                await asyncio.sleep(wait)
            try:
                self._writer.write(piece)
                await self._writer.drain()
            except ConnectionError:
                break
        with contextlib.suppress(Exception):
            self._writer.write_eof()


async def _serve(port: int, host: str, target: int, latency: float, rate: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(latency)
        there_reader, there_writer = await asyncio.open_connection(host, target, limit=4 * PIECE)
        try:
            await asyncio.gather(
                _Direction(reader, there_writer, delay=latency / 2, rate=rate).run(),
                _Direction(there_reader, writer, delay=latency / 2, rate=rate).run(),
            )
        finally:
            writer.close()
            there_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=4 * PIECE)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("host", str), ("target", int), ("latency_ms", float), ("rate", float)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.host, given.target, given.latency_ms / 1000, given.rate))
