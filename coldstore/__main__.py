"""The program, as `coldstore` and as `python -m coldstore`: the settings that belong to a whole process, then the command line.

Here and not in the library, which runs in processes of others.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

# Rows by the ten thousand are alive at once and none of them is ever part of a cycle: at Python's own threshold of 700 the collector
# looks through them again and again, a fifth of a second of each 500 MB.
_COLLECT_AFTER = (200_000, 50, 100)
# Readers and encoders hand the interpreter over for each row; at the usual 5 ms a hand-over they wait longer than they work.
_HAND_OVER = 0.0005  # seconds


def main() -> NoReturn:
    gc.disable()
    try:
        from coldstore import cli  # a Ctrl-C while half the modules are loaded is no defect
    except KeyboardInterrupt:
        os._exit(130)
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    gc.enable()
    sys.setswitchinterval(_HAND_OVER)
    try:
        cli.main()
    except SystemExit as exc:
        leave(exc.code)


def leave(code: object) -> NoReturn:
    """As the interpreter ends after a `SystemExit` with this code, in the same order, but for taking every module and object apart: the
    kernel does that at once, and it is a fifth of what a command that does nothing takes."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  waits for other threads; `multiprocessing` ends its children so
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it any more: it was told or cannot be
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
