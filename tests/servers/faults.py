"""An HTTP proxy that fails on request: `with fault_proxy("http://127.0.0.1:9000") as p: p.add(action="lost_reply", method="PUT")`.

It runs in a process of its own (a client that closes a connection while it collects garbage would wait for a proxy on its own thread), keeps
the `Host` header (signatures stay valid) and forwards paths as they came. Of the rules that match a request, the first with uses left acts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tests.servers.process import free_port, running_module

Action = Literal["status", "reset", "reset_mid_body", "lost_reply", "late_error", "truncate", "flip", "stall", "slow", "stale"]

S3_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
    507: "StorageFull",
}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization", "content-length"}


@dataclass
class Rule:
    """When and how to fail. `method` and `match` (path and query) are searched as regular expressions.

    status: answer `status` without asking the server · reset: drop the connection before the request is read · reset_mid_body: after `after`
    bytes of it · lost_reply: let the server do it, then drop the connection · late_error: let it do it, then answer `status` · truncate: end
    the reply after `after` bytes · flip: flip a bit of the reply's byte `after` · stall: wait `seconds` first · slow: reply at `rate` bytes/s
    · stale: as `tests.torture.chaos` does
    """

    action: Action
    method: str = ""
    match: str = ""
    skip: int = 0
    count: int | None = 1
    status: int = 503
    body: str | None = None
    after: int = 0
    seconds: float = 0.0
    rate: float = 1e6


class FaultProxy:
    """The running proxy, seen from the test."""

    def __init__(self, url: str, control: str) -> None:
        self.url = url
        self._control = control

    def add(self, action: Action, **fields: Any) -> None:
        self._ask("/add", asdict(Rule(action, **fields)))

    def clear(self) -> None:
        """Forget all rules and the log."""
        self._ask("/clear", {})

    def log(self) -> list[str]:
        """What came by since the last `clear`: `PUT /bucket/key -> 200`, or the action instead of the status."""
        return self._ask("/log", {})

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.log())

    def _ask(self, path: str, message: dict[str, Any]) -> Any:
        request = urllib.request.Request(self._control + path, data=json.dumps(message).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)


@contextlib.contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """A proxy in front of `target`, without rules at first."""
    port, control = free_port(), free_port()
    with running_module("tests.servers.faults", target, str(port), str(control), ports=[port, control]):
        yield FaultProxy(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}")


class _Dropped(Exception):
    """The connection is to be cut without another byte."""


class _Proxy:
    def __init__(self, target: str) -> None:
        self.target = target.rstrip("/")
        self.rules: list[Rule] = []
        self.lines: list[list[str]] = []  # what was asked, and what became of it; written before the client hears

    async def start(self, app: Any) -> Any:
        import aiohttp

        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )
        yield
        await self.session.close()

    def rule_for(self, request: Any) -> Rule | None:
        for rule in self.rules:
            if re.search(rule.method, request.method) and re.search(rule.match, request.raw_path) and rule.count != 0:
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                if rule.count is not None:
                    rule.count -= 1
                return rule
        return None

    async def handle(self, request: Any) -> Any:
        rule = self.rule_for(request)
        line = [f"{request.method} {request.raw_path}", rule.action if rule else ""]
        self.lines.append(line)
        try:
            return await self.answer(request, rule, line)
        except (_Dropped, ConnectionError):
            line[1] = line[1] or "dropped"
            if request.transport is not None:
                request.transport.abort()
            raise

    async def answer(self, request: Any, rule: Rule | None, line: list[str]) -> Any:
        action = rule.action if rule else ""
        if action == "reset":
            raise _Dropped
        if action == "reset_mid_body":
            await request.content.read(max(1, rule.after))
            raise _Dropped
        if action == "stall":
            await asyncio.sleep(rule.seconds)
        sent = await request.read()
        if action == "status":
            return self.error(rule)
        status, headers, received = await self.forward(request, sent)
        line[1] = line[1] or str(status)
        if action == "lost_reply":
            raise _Dropped
        if action == "late_error":
            return self.error(rule)
        return await self.reply(request, rule, status, headers, received)

    def error(self, rule: Rule) -> Any:
        from aiohttp import web

        code = S3_CODES.get(rule.status, "InternalError")
        body = rule.body if rule.body is not None else f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>"
        return web.Response(status=rule.status, text=body, content_type="application/xml")

    async def forward(self, request: Any, sent: bytes) -> tuple[int, Any, bytes]:
        import yarl
        from multidict import CIMultiDict

        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP | {"expect"})
        async with self.session.request(
            request.method,
            yarl.URL(self.target + request.raw_path, encoded=True),
            headers=headers,
            data=sent or None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as reply:
            return reply.status, reply.headers, await reply.read()

    async def reply(self, request: Any, rule: Rule | None, status: int, headers: Any, body: bytes) -> Any:
        from aiohttp import web

        out = web.StreamResponse(status=status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                out.headers.add(name, value)
        length = headers.get("Content-Length")
        out.content_length = int(length) if request.method == "HEAD" and length else len(body)
        action = rule.action if rule else ""
        await out.prepare(request)
        if request.method == "HEAD":
            await out.write_eof()
            return out
        if action == "flip" and body:
            at = min(rule.after, len(body) - 1)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if action == "truncate":
            await out.write(body[: rule.after])
            raise _Dropped
        if action == "slow":
            for start in range(0, len(body), 16384):
                await out.write(body[start : start + 16384])
                await asyncio.sleep(16384 / rule.rate)
        else:
            await out.write(body)
        await out.write_eof()
        return out

    async def control(self, request: Any) -> Any:
        from aiohttp import web

        if request.path == "/add":
            self.rules.append(Rule(**await request.json()))
        if request.path == "/clear":
            self.rules, self.lines = [], []
        return web.json_response([f"{asked} -> {outcome}" for asked, outcome in self.lines])


async def _serve(proxy: _Proxy, port: int, control: int) -> None:
    from aiohttp import web

    app = web.Application(client_max_size=2**30)
    app.cleanup_ctx.append(proxy.start)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    side = web.Application()
    side.router.add_route("POST", "/{path:.*}", proxy.control)
    for application, number in ((app, port), (side, control)):
        # Answers that the proxy cuts off on purpose are no errors to report.
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", number).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser()
    for name, kind in (("target", str), ("port", int), ("control", int)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    asyncio.run(_serve(_Proxy(given.target), given.port, given.control))
