"""The program without its start: a process that has imported it forks one for each run, which saves most of the time of the hundreds of
runs of these tests. What depends on the start itself (terminals, encodings, limits, the installed wheel) starts it for real.

Protocol: a connection carries one JSON line with arguments, folder and environment, and the two outputs as descriptors; the answers are
the process id and, when it ended, the exit code.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class Fork:
    """One run, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, server: str, arguments: list[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._outputs = [os.pipe(), os.pipe()]
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        request = json.dumps({"arguments": arguments, "cwd": str(cwd), "env": dict(env)}).encode() + b"\n"
        socket.send_fds(self._connection, [request], [write for _, write in self._outputs])
        for _, write in self._outputs:
            os.close(write)
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._end()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        """What it printed, once it has ended."""
        found: dict[int, list[bytes]] = {read: [] for read, _ in self._outputs}
        waiting = set(found)
        deadline = time.monotonic() + timeout
        while waiting:
            ready = select.select(list(waiting), [], [], max(0, deadline - time.monotonic()))[0]
            if not ready:
                os.killpg(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired("coldstore", timeout, b"".join(b"".join(pieces) for pieces in found.values()))
            for read in ready:
                if data := os.read(read, 1 << 16):
                    found[read].append(data)
                else:
                    waiting.discard(read)
                    os.close(read)
        if self.returncode is None:
            self._end()
        out, err = (b"".join(pieces) for pieces in found.values())
        return out, err

    def _end(self) -> None:
        self.returncode = int(self._answers.readline())
        self._answers.close()
        self._connection.close()


@contextmanager
def fork_server() -> Iterator[str]:
    """The address of a server that ends with the block, or with this process."""
    with tempfile.TemporaryDirectory(prefix="forks-") as folder:
        address = f"{folder}/s"
        server = subprocess.Popen([sys.executable, "-m", "tests.acceptance.forks", address], stdin=subprocess.PIPE, cwd=_ROOT)
        try:
            while not Path(address).exists():
                assert server.poll() is None
                time.sleep(0.01)
            yield address
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()


def _serve(address: str) -> None:
    from coldstore.__main__ import leave
    from coldstore.cli import load, main

    load()

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    gc.collect()
    gc.freeze()
    Path(address + ".new").rename(address)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
            return
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        request, outputs, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if pid := os.fork():
            for output in outputs:
                os.close(output)
            connection.sendall(b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        connection.close()
        _become(json.loads(request), outputs)
        try:
            main()
        except SystemExit as exc:
            leave(exc.code)


def _become(wanted: dict, outputs: list[int]) -> None:
    """Nothing of this process stays but what it has imported."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for here, there in zip([os.open(os.devnull, os.O_RDONLY), *outputs], range(3), strict=True):
        os.dup2(here, there)
        os.close(here)
    # New ones: the old know that they were files, or a terminal.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = ["coldstore", *wanted["arguments"]]


if __name__ == "__main__":
    _serve(sys.argv[1])
