"""Figures of processes: what a fresh one took, by its own account. Needs nothing but Python."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

Figures = dict[str, float]


def run(command: Sequence[str]) -> Figures:
    """Run ``command``, which ends with ``report_and_exit``: wall and CPU seconds, peak memory in MB."""
    start = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if child.returncode:
        print(child.stderr[-4000:], file=sys.stderr)
        sys.exit(f"This failed with code {child.returncode}: {' '.join(command)}")
    return {"wall_s": round(wall, 2), **json.loads(child.stdout.splitlines()[-1])}


def report_and_exit(**more: float) -> NoReturn:
    """CPU and memory of this process alone: no child's, no container's; and ``more``."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss: across fork and exec that one keeps the peak of the parent.
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    figures = {
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_rss_mb": int(peak.split()[1]) // 1024,
        **more,
    }
    print("\n" + json.dumps(figures), flush=True)
    os._exit(0)


def medians(samples: Sequence[Figures]) -> Figures:
    return {key: round(statistics.median(s[key] for s in samples), 2) for key in samples[0]}


def per_record(samples: Sequence[Figures], records: int) -> Figures:
    """Medians of the samples, by record."""
    middle = medians(samples)
    return {
        "records_per_s": round(records / middle["wall_s"]),
        "cpu_s_per_million": round(middle["cpu_s"] * 1e6 / records, 2),
        "peak_rss_mb": round(middle["peak_rss_mb"]),
    }


def ratios(of: Figures, to: Figures) -> Figures:
    return {key: round(of[key] / to[key], 3) for key in to}
