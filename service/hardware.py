"""What the machine gives this process: the number of CPUs that it may really use."""

import math
import os
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cpu_quota(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """CPUs for this process: the smaller of its affinity mask and its cgroup's quota (v2 or v1), at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(membership) if (quota := _quota_v2(cgroup / folder / "cpu.max"))]
    quota = min(quotas, default=None) or _quota_v1(cgroup / "cpu")
    return max(1, min(allowed, math.ceil(quota) if quota else allowed))


def _groups(membership: Path) -> tuple[PurePosixPath, ...]:
    """This process's group and those around it: v2's line is `0::/PATH`, `/` in a container, deeper under systemd."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    own = PurePosixPath(next((line[3:].strip("/") for line in lines if line.startswith("0::")), ""))
    return own, *own.parents


def _quota_v2(path: Path) -> float | None:
    """`cpu.max` holds "QUOTA PERIOD" in microseconds, or "max PERIOD" for none."""
    fields = path.read_text().split() if path.is_file() else []
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(folder: Path) -> float | None:
    """`cpu.cfs_quota_us` is -1 for none."""
    quota, period = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if not (quota.is_file() and period.is_file()) or int(quota.read_text()) <= 0:
        return None
    return int(quota.read_text()) / int(period.read_text())
