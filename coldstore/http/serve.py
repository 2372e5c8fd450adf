"""The server process: uvicorn, the signals, and on wish the scheduler beside it.

SIGTERM: nothing new begins; requests that wait, and runs, have `stop_seconds` to come to their end; then they are told to stop. A second
signal does not wait.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn

from coldstore.config import Settings
from coldstore.errors import ColdStoreError, ConfigError
from coldstore.http.app import make_app
from coldstore.http.service import Service
from coldstore.perform import scheduler
from coldstore.schedule import Say, Scheduler

_BACKLOG = 2048
_ABORT = 10  # seconds for what is told to stop


class _Server(uvicorn.Server):
    """uvicorn, whose end is ours: its own handler would raise the signal once more when all is done."""

    def __init__(self, config: uvicorn.Config, *, up: Callable[[], None], stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._up = up
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 — uvicorn's
        self.should_exit = True
        self._stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
                signal.signal(signal.SIGHUP, self.handle_exit)
            yield


def serve(settings: Settings, *, say: Say, with_scheduler: bool = False) -> bool:
    """Until a signal. False when something had to be given up. Raises `ConfigError` when it cannot even begin."""
    app = make_app(settings)
    service: Service = app.state.service
    listener = listen(settings.server_host, settings.server_port)
    logging.getLogger("coldstore.http").addHandler(_Saying(say))
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.server_stop_seconds + _ABORT,
    )
    with listener, _beside(settings, say, wanted=with_scheduler) as beside:
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(
            config,
            up=lambda: say(f"listening on {where}", host=host, port=port),
            stop=lambda: _stop(service, beside, settings.server_stop_seconds),
        )
        if beside is not None:
            beside.start(lambda: server.handle_exit(signal.SIGTERM, None))
        server.run(sockets=[listener])
    say("stopped")
    if beside is not None and beside.error is not None:
        raise beside.error
    return service.whole and (beside is None or beside.whole)


def _stop(service: Service, beside: _Beside | None, seconds: float) -> None:
    """Begin nothing more, and give up what runs after `seconds`: uvicorn itself waits for its requests, whatever they wait for."""
    if not service.jobs.stopping:
        timer = threading.Timer(seconds, service.jobs.stop)
        timer.daemon = True
        timer.start()
    service.jobs.stop()
    if beside is not None:
        beside.stop()


def listen(host: str, port: int) -> socket.socket:
    """Before anything else is begun: a port that is taken is the commonest mistake."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)  # asyncio sends small answers at once only where the protocol is told
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(_BACKLOG)
        except OSError:
            found.close()
            raise
    except OSError as exc:
        raise ConfigError(
            f"cannot listen at {host} port {port}: {exc.strerror or exc}",
            hint="Choose another with --host and --port, or end what listens there.",
        ) from exc
    return found


class _Saying(logging.Handler):
    """Where the log of a request ends: the same place as everything else that the server tells."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage(), level=record.levelname)


class _Beside:
    """The scheduler in a thread of its own. `whole`: it gave up nothing. `error`: why it could not even begin; then the server ends too,
    for it was asked to do both."""

    def __init__(self, service: Scheduler) -> None:
        self.whole = True
        self.error: ColdStoreError | None = None
        self._service = service
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self, failed: Callable[[], None]) -> None:
        def run() -> None:
            try:
                self.whole = self._service.run()
            except ColdStoreError as exc:
                self.error = exc
                failed()

        self._thread = threading.Thread(target=run, name="coldstore-scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._service.stop()

    def end(self) -> None:
        if not self._stopped:  # a second time would be not to wait
            self.stop()
        if self._thread is not None:
            self._thread.join()


@contextmanager
def _beside(settings: Settings, say: Say, *, wanted: bool) -> Iterator[_Beside | None]:
    if not wanted:
        yield None
        return
    with scheduler(settings, say=say) as service:
        found = _Beside(service)
        try:
            yield found
        finally:
            found.end()
