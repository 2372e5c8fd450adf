"""Run a command that is killed with the process that asked for it: `python tether.py PARENT COMMAND…`.

A signal at the parent's death (Linux) reaches the child even where the test run was killed and cleaned up nothing.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execv(sys.argv[2], sys.argv[2:])
