"""Small files that are large: gigabytes of one byte in some hundred kilobytes, and a process that reads one with its memory counted.

`python -m tests.torture.bomb FILE MEGABYTES` reads a document as `restore --file` does, with so much address space more than it had at the
start, and prints how it ended, how many rows came, and the most memory that it took for it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = 1 << 17
GIB = 1 << 30

HEADER = (
    b'{"format":"coldstore/1","snapshotAt":"2026-02-26T02:00:00.000Z","uid":null,"workspace":null,"id":"memory-all-1772071200000",'
    b'"kind":"full","label":null,"generator":"a bomb","database":{"systemIdentifier":"","name":"","serverVersion":"","snapshot":""},'
    b'"schema":{"tables":[{"tier":"notes","array":"notes","table":{"schema":"public","name":"notes"},"kind":"table","columns":'
    b'[{"name":"id","type":"text"}]}]},\n'
)


def zstd(head: bytes, fill: bytes, size: int, tail: bytes = b"") -> bytes:
    """`head`, `size` times the byte `fill`, and `tail`: a frame of blocks of which most say *128 KiB of the same* in four bytes (RFC 8878)."""
    same = (BLOCK << 3 | 1 << 1).to_bytes(3, "little") + fill
    last = (len(tail) << 3 | 1).to_bytes(3, "little") + tail
    return b"\x28\xb5\x2f\xfd\x00\x50" + (len(head) << 3).to_bytes(3, "little") + head + same * (size // BLOCK) + last


def gzip(head: bytes, fill: bytes, size: int, tail: bytes = b"") -> bytes:
    """The same as one gzip member: a run of the byte is compressed once and repeated."""
    import zlib

    from isal import isal_zlib

    run = fill * (16 << 20)
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = machine.compress(head) + machine.flush(zlib.Z_FULL_FLUSH)
    packed = machine.compress(run) + machine.flush(zlib.Z_FULL_FLUSH)
    end = machine.compress(tail) + machine.flush()
    sum_ = isal_zlib.crc32(head)
    for _ in range(size // len(run)):
        sum_ = isal_zlib.crc32(run, sum_)
    whole = (len(head) + size + len(tail)) % (1 << 32)
    trailer = isal_zlib.crc32(tail, sum_).to_bytes(4, "little") + whole.to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + packed * (size // len(run)) + end + trailer


PACK: dict[str, Callable[[bytes, bytes, int, bytes], bytes]] = {"zst": zstd, "gz": gzip}

#: name → (head, fill, tail): what never ends.
ENDLESS = {
    "nothing but zeros": (b"", b"\0", b""),
    "a row of ours": (HEADER + b'"notes":[\n{"id":"', b"x", b'"}\n]}\n'),
    "a line of ours that is no row": (HEADER + b'"notes":[\n', b"x", b"\n]}\n"),
    "a header of ours": (b'{"format":"coldstore/1","label":"', b"x", b'"},\n'),
    "a row": (b'{"notes":[{"id":"', b"x", b'"}]}'),
    "a member": (b'{"notes":[{"id":"1"}],"pi":3.', b"1", b"}"),
    "a string": (b'{"notes":[{"id":"1"}],"title":"', b"x", b'"}'),
    "blanks": (b'{"notes":[{"id":"1"}]', b" ", b"}"),
    "blanks before": (b"", b"\n", b'{"notes":[]}'),
}


def read(path: Path, megabytes: int) -> dict[str, object]:
    """How a process of its own, with so much memory, ended."""
    command = [sys.executable, "-m", "tests.torture.bomb", str(path), str(megabytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": "traceback", "message": (done.stderr.splitlines() or [str(done.returncode)])[-1]}
    return dict(json.loads(done.stdout))


def _status(name: str) -> int:
    """Kilobytes. (What getrusage calls the most was inherited from whoever started us.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _main(path: Path, megabytes: int) -> None:
    from coldstore.documents import open_file
    from coldstore.errors import ColdStoreError

    found: dict[str, object] = {"error": None, "rows": 0}
    before = _status("VmRSS")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    try:
        document = open_file(path)
        found["rows"] = sum(1 for part in document.parts(["notes"]) for _ in part.rows())
    except ColdStoreError as exc:
        found |= {"error": exc.code, "message": str(exc)}
    found["megabytes"] = (_status("VmHWM") - before) >> 10
    print(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
