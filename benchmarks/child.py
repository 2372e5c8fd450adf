"""One command or pipeline, measured from close by. A program of its own: `python -I -S child.py '{"commands": [...], ...}'`.

Prints one JSON object: `seconds` from the first start to the last exit, `synced` when the output file was on the disk besides (if asked),
and for each process its exit `code`, `cpu` seconds and `peak` memory in bytes.

It stands between the benchmark and what is measured because the kernel counts the memory of whoever starts a program as that program's
own high-water mark. Here that is a bare interpreter of some 10 MB, less than anything that is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main() -> None:
    spec = json.loads(sys.argv[1])
    out = open(spec["stdout"], "wb") if spec.get("stdout") else None  # noqa: PTH123, SIM115  open until the last process has ended
    started = time.perf_counter()
    processes: list[subprocess.Popen[bytes]] = []
    for number, command in enumerate(spec["commands"]):
        last = number == len(spec["commands"]) - 1
        before = processes[-1].stdout if processes else None
        # What the last one says goes to the file, or to standard error: standard output is for the result.
        after = (out or sys.stderr) if last else subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=before or subprocess.DEVNULL, stdout=after, cwd=spec.get("cwd")))
        if before is not None:
            before.close()  # so that the one before is told when the one after gives up
    result: dict[str, object] = {"processes": [_wait(p) for p in processes]}
    result["seconds"] = time.perf_counter() - started
    if out is not None and spec.get("sync"):
        os.fsync(out.fileno())
        result["synced"] = time.perf_counter() - started
    print(json.dumps(result))


def _wait(process: subprocess.Popen[bytes]) -> dict[str, float]:
    _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"code": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * unit}


if __name__ == "__main__":
    main()
