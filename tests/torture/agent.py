"""`python -m tests.torture.agent STORE`: an agent that changes its memory two thousand times a second and saves as it goes, until it is killed.

Its memory follows from one number, so whoever looks at a memory can tell whether it ever was one. It goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from typing import Any

from coldstore import config
from coldstore.autosave import AutoSave
from coldstore.vault import MemoryVault, VaultSnapshot

EVERY = 3
KEEP = 3
NAME = "tortured"


def memory_at(number: int) -> dict[str, Any]:
    """What the agent knows after so many operations: texts, bytes and values of sizes that differ."""
    digest = hashlib.sha256(str(number).encode()).digest()
    notes = {f"notes/{n}.md": f"{number} {n}\n" * (digest[n] * 3) for n in range(digest[0] % 20)}
    return {"number": number, "digest": digest, "blob": digest * (digest[1] * 40), **notes}


def vault_in(store: str, **given: Any) -> MemoryVault:
    return MemoryVault(NAME, url=store, settings=config.build({}, {"max_fall": 1, **given}))


def main(store: str) -> None:
    def saved(info: VaultSnapshot) -> None:
        os.write(1, f"{info.id}\n".encode())

    def failed(error: Exception) -> None:
        os.write(2, f"{error!r}\n".encode())

    number = 0
    with AutoSave(vault_in(store), lambda: memory_at(number), every=EVERY, prune_keep=KEEP, on_save=saved, on_error=failed) as save:
        found = save.restore_or_default({"number": 0})
        number = found["number"]
        if number and found != memory_at(number):
            os.write(2, f"what was restored was never the memory: {number}\n".encode())
            sys.exit(1)
        os.write(1, b"ready\n")
        while True:
            number += 1
            save.tick()
            time.sleep(0.0005)


if __name__ == "__main__":
    main(sys.argv[1])
