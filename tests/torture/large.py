"""One document as large as it may get, saved and brought back by a process whose memory is watched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.torture.summary import Summary

_BASE = 150  # megabytes of an interpreter with everything imported
_TIMES = 6  # a memory is held as the agent has it, as it is written, and as it came back

_AGENT = """
import json, sys
from pathlib import Path
from coldstore import MemoryVault, config

folder, megabytes, compression = sys.argv[1], int(sys.argv[2]), sys.argv[3]
line = "one more line of a long text, ümlaut and all\\n"
memory = {"large": line * (megabytes * 1_000_000 // len(line.encode())), "small": "x"}
settings = config.build({}, {"compression": compression})
vault = MemoryVault("agent", url=folder, settings=settings, object_limit=5_000_000)
vault.backup(memory)
whole = vault.restore() == memory
objects = [o.size for o in vault.store.list("snapshots/")]
# Not getrusage's ru_maxrss: a process inherits that from whoever started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([whole, max(objects), int(status["VmHWM"].split()[0]) * 1024 / 1e6]))
"""


def campaign(folder: Path, *, megabytes: int) -> Summary:
    summary = Summary("one large document", 0)
    with summary.timed():
        for compression in ("none", "zstd"):
            arguments = [str(folder / compression), str(megabytes), compression]
            done = subprocess.run([sys.executable, "-c", _AGENT, *arguments], capture_output=True, text=True, check=True)
            whole, largest, peak = json.loads(done.stdout)
            broken = [] if whole else ["it came back as another"]
            broken += [f"an object has {largest} bytes"] if largest > 5_000_000 else []
            broken += [f"it took {peak:.0f} MB"] if peak > _BASE + _TIMES * megabytes else []
            summary.count("came back whole", broken, where=f"{megabytes} MB, {compression}")
            summary.figures[compression] = f"{megabytes} MB took {peak:.0f} MB of memory"
    return summary
