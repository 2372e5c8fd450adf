"""Documents, manifests, frames and streams with bytes that are wrong: what comes out is rows or one of our errors, and nothing else.

Good inputs are bent: bits flipped, pieces cut out, doubled, swapped, or replaced by other pieces; manifests also value by value and signed
again, so that the wrong is met behind the checksum. Hypothesis draws it all, so a run that fails is printed in its smallest form. Bombs are
read by a process of their own whose memory is limited (`bomb.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from coldstore.app import ColdStore
from coldstore.codec.compress import Codec, decode_stream
from coldstore.config import build
from coldstore.document import foreign, model
from coldstore.document.reader import frame_rows, lines, matching_rows, read_header, read_rows
from coldstore.documents import open_file, open_loose
from coldstore.errors import ColdStoreError, VerifyFailed
from coldstore.storage import layout
from tests.torture import bomb
from tests.torture.summary import Summary
from tests.unit import samples

CODECS = ("none", "gzip", "zstd")
TABLES = {
    "notes": [
        json.dumps({"id": n, "uid": f"u{n % 3}", "body": "wörds " * (n % 7), "more": [n, None, {"a": "\n"}]}).encode() for n in range(40)
    ],
    "empty": [],
    "facts": [b'{"id":1,"uid":null}', b'{"id":12345678901234567890.5,"uid":"\\u00e9"}'],
}
FOREIGN = [
    json.dumps({"uid": None, "notes": [{"id": 1, "v": [1.5, "]}"]}, {"id": 2}], "numbers": [1, 2]}).encode(),
    json.dumps({"snapshotAt": "2026-02-26T02:00:00Z", "notes": [{"id": n, "t": '"{[\\'} for n in range(9)]}, indent=1).encode(),
]

# --- what is done to a good input --------------------------------------------------------------------------------------------------

_TOKENS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b",",
    b":",
    b"\n",
    b"\0",
    b"\xff",
    b"null",
    b'"\\ud800"',
    b"1e999",
    b"-",
    b"[" * 2000,
    b'{"a":' * 600,
)
_places = st.floats(0, 1)
_bends = st.one_of(
    st.tuples(st.just("flip"), _places, st.integers(0, 7)),
    st.tuples(st.just("cut"), _places, _places),
    st.tuples(st.just("double"), _places, _places),
    st.tuples(st.just("swap"), _places, _places),
    st.tuples(st.just("end"), _places, st.just(0)),
    st.tuples(st.just("insert"), _places, st.sampled_from(_TOKENS) | st.binary(max_size=40)),
)


def bend(data: bytes, how: Sequence[tuple[str, float, Any]]) -> bytes:
    """`data` with something wrong at each of these places."""
    for kind, place, more in how:
        at = int(place * len(data))
        if kind == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << more]) + data[at + 1 :]
        elif kind == "end":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + more + data[at:]
        elif kind in {"cut", "double", "swap"}:
            start, end = sorted((at, int(more * len(data))))
            piece = data[start:end]
            data = {"cut": data[:start], "double": data[:end] + piece, "swap": piece + data[:start]}[kind] + data[end:]
    return data


def bent(good: Iterable[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(bend, st.sampled_from(list(good)), st.lists(_bends, min_size=1, max_size=6)) | st.binary(max_size=300)


_odd = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [-1, 0, 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**30, 1e308, -0.0, "", "x" * 500, "\0", "coldstore/2", "zstd", [], {}]
    ),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.integers(), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=5
    ),
)


def replaced(value: Any, path: Sequence[float], new: Any) -> Any:
    """`value` with something else where `path` leads, each step a share of the way through the members there."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[min(int(path[0] * len(keys)), len(keys) - 1)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], path[1:], new)
    return copy


def signed(body: dict[str, Any]) -> bytes:
    """A manifest whose checksum fits, whatever stands in it."""
    with suppress(Exception):
        body = {k: v for k, v in body.items() if k != "checksum"}
        return model.canonical({**body, "checksum": sha256(model.canonical(body)).hexdigest()}) + b"\n"
    return b""


def altered(manifest: bytes) -> st.SearchStrategy[bytes]:
    changes = st.lists(st.tuples(st.lists(_places, min_size=1, max_size=5), _odd), min_size=1, max_size=3)

    def alter(how: list[tuple[list[float], Any]]) -> bytes:
        body = json.loads(manifest)
        for path, new in how:
            body = replaced(body, path, new)
        return signed(body)

    return changes.map(alter)


# --- what is tried -----------------------------------------------------------------------------------------------------------------


def chunked(data: bytes, step: int = 37) -> Iterable[bytes]:
    return (data[i : i + step] for i in range(0, len(data), step))


@dataclass(frozen=True)
class Target:
    """Something that reads bytes: `inputs` are good ones, bent."""

    name: str
    inputs: st.SearchStrategy[bytes]
    read: Callable[[bytes], object]


def targets(folder: Path) -> list[Target]:
    made = {codec: samples.snapshot(TABLES, codec=Codec(codec), frame_size=400) for codec in CODECS}  # type: ignore[arg-type]
    plain, manifest = made["none"]
    frames = [plain[f.offset : f.offset + f.length] for f in manifest.frames if f.rows]
    text = model.encode_manifest(manifest)
    header = plain.partition(b"\n")[0]
    arrays = list(TABLES)

    def document(codec: str, data: bytes) -> None:
        path = folder / f"loose.json{Codec(codec).suffix}"  # type: ignore[arg-type]
        path.write_bytes(data)
        _read_all(open_loose(path))

    def with_manifest(codec: str, data: bytes) -> None:
        stored, good = made[codec]
        path = folder / "beside" / good.document.rsplit("/", 1)[-1]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stored)
        (path.parent / f"{good.id}.manifest.json").write_bytes(data)
        _read_all(open_file(path))

    def verified(data: bytes) -> None:
        stored, good = made["zstd"]
        store = folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        for key, content in ((good.document, stored), (layout.manifest_key(good.id), data)):
            (store / key).parent.mkdir(parents=True, exist_ok=True)
            (store / key).write_bytes(content)
        with ColdStore(build({}, {"url": str(store)})) as cold:
            (verdict,) = cold.verify(deep=True)
        if not verdict.ok:
            raise VerifyFailed(verdict.problems[0])

    def stream(codec: str, data: bytes) -> None:
        for _ in decode_stream(Codec(codec), iter(list(chunked(data)))):  # type: ignore[arg-type]
            pass

    every = [
        Target("decode_manifest", bent([text]) | altered(text), lambda d: model.decode_manifest(d, key="a manifest")),
        Target("read_header", bent([header]), read_header),
        Target("lines, read_rows", bent([plain.partition(b"\n")[2]]), lambda d: list(read_rows(lines(chunked(d)), arrays))),
        Target("frame_rows, matching_rows", bent(frames), lambda d: [list(frame_rows(d)), list(matching_rows(d, b"u1"))]),
        Target("foreign.split", bent([*FOREIGN, plain]), lambda d: list(foreign.split(chunked(d), skeleton={}))),
        Target("verify with a manifest altered", altered(model.encode_manifest(made["zstd"][1])), verified),
    ]
    for codec in CODECS:
        stored, good = made[codec]
        pieces = [stored[f.offset : f.offset + f.length] for f in good.frames]
        every += [
            Target(f"Codec.decode {codec}", bent(pieces), lambda d, c=codec, n=good.frames[0].plain: Codec(c).decode(d, n)),
            Target(f"decode_stream {codec}", bent([stored]), partial(stream, codec)),
            Target(f"open_file {codec}", bent([stored]), partial(document, codec)),
            Target(f"open_file {codec}, manifest altered", altered(model.encode_manifest(good)), partial(with_manifest, codec)),
        ]
    every.append(Target("open_file of another program", bent(FOREIGN), partial(document, "none")))
    return every


def _read_all(document: Any) -> None:
    for part in document.parts(["notes", "empty", "facts"]):
        for _ in part.rows():
            pass


def campaign(*, seed: int, runs: int) -> Summary:
    """`runs` inputs in all, as many for each target."""
    summary = Summary("fuzz", seed)
    with summary.timed(), tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        every = targets(Path(folder))
        for target in every:
            _try(target, summary, seed=seed, runs=max(1, runs // len(every)))
    return summary


def _try(target: Target, summary: Summary, *, seed: int, runs: int) -> None:
    outcomes: Counter[str] = Counter()
    slowest = 0.0

    @seeded(seed)
    @settings(
        max_examples=runs, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
    )
    @given(target.inputs)
    def tried(data: bytes) -> None:
        nonlocal slowest
        started = time.monotonic()
        try:
            target.read(data)
            outcomes["read"] += 1
        except ColdStoreError as exc:
            outcomes[exc.code if str(exc) else "an error that says nothing"] += 1
        slowest = max(slowest, time.monotonic() - started)

    broken = []
    try:
        tried()
    except BaseException as exc:  # hypothesis has made it small; its notes have the input
        broken = [f"{target.name} raised {exc!r} {' '.join(getattr(exc, '__notes__', []))}"[:1500]]
    for outcome, number in outcomes.items():
        summary.outcomes[outcome] += number
    summary.runs += sum(outcomes.values())
    summary.broken += broken + [f"{target.name} had {n} errors that say nothing" for n in [outcomes["an error that says nothing"]] if n]
    summary.figures[target.name] = f"{sum(outcomes.values())} inputs, {outcomes['read']} of them read, the slowest {slowest * 1000:.0f} ms"


# --- bombs -------------------------------------------------------------------------------------------------------------------------


def bombs(folder: Path, *, size: int, megabytes: int, suffixes: Iterable[str] = bomb.PACK) -> Summary:
    """Documents of `size` bytes in very small files, each read by a process that may take `megabytes` more than at its start."""
    summary = Summary("bombs", 0)
    with summary.timed():
        for name, (head, fill, tail) in bomb.ENDLESS.items():
            for suffix in suffixes:
                path = folder / f"bomb.json.{suffix}"
                path.write_bytes(bomb.PACK[suffix](head, fill, size, tail))
                found = bomb.read(path, megabytes)
                good = found["error"] in {"CorruptDocument", "TruncatedDocument"} and not found["rows"]
                what = f"{name}, {suffix}, {path.stat().st_size >> 10} KiB"
                summary.count(str(found["error"]), [] if good else [str(found)], where=what)
                summary.figures[what] = f"refused with {found.get('megabytes')} MB"
    return summary
