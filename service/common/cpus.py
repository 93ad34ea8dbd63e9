"""Reads what this process may use of the machine: CPUs, their instruction sets, and memory."""

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_PROC = Path("/proc")
_NO_LIMIT_V1 = 1 << 60  # cgroup v1 writes the largest whole number of pages if there is no limit

INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512_BF16",
    "avx512_vnni": "AVX512_VNNI",
    "avx_vnni": "AVX_VNNI",
    "amx_tile": "AMX tile",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
}
"""Instruction sets that decide how fast networks run on a CPU: the flag in /proc/cpuinfo, and the usual name."""


@dataclass(frozen=True, slots=True)
class Host:
    """CPUs and memory. `cpus` is what this process may use; `limit_bytes` is None without a memory limit."""

    cpus: int
    all_cpus: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None
    limit_bytes: int | None


def host(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP, proc: Path = _PROC) -> Host:
    """Reads the CPUs and the memory of this machine, and the limits of this process."""
    words = _words(proc / "cpuinfo", "flags")
    names = tuple(name for word, name in INSTRUCTION_SETS.items() if word in words)
    memory = _words(proc / "meminfo", "MemTotal")
    return Host(
        cpus=cpu_quota(cgroup, membership),
        all_cpus=os.cpu_count() or 1,
        instruction_sets=names,
        memory_bytes=int(memory[0]) << 10 if memory else None,
        limit_bytes=memory_limit(cgroup, membership),
    )


def cpu_model(proc: Path = _PROC) -> str:
    """The processor's model name. On Arm its implementer and part numbers; `unknown` if the kernel gives neither."""
    if words := _words(proc / "cpuinfo", "model name"):
        return " ".join(words)
    numbers = [*_words(proc / "cpuinfo", "CPU implementer"), *_words(proc / "cpuinfo", "CPU part")]
    return " ".join(numbers) or "unknown"


def memory_limit(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """The smallest memory limit in bytes of this process's cgroups (v2 or v1), or None."""
    files = [cgroup / folder / "memory.max" for folder in _groups(membership)]
    files.append(cgroup / "memory" / "memory.limit_in_bytes")
    texts = [path.read_text().strip() for path in files if path.is_file()]
    limits = [int(text) for text in texts if text.isdecimal()]
    return min((limit for limit in limits if limit < _NO_LIMIT_V1), default=None)


def cpu_quota(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """CPUs for this process: the smaller of its affinity mask and its cgroup's quota (v2 or v1), at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(membership) if (quota := _quota_v2(cgroup / folder / "cpu.max"))]
    quota = min(quotas, default=None) or _quota_v1(cgroup / "cpu")
    return max(1, min(allowed, math.ceil(quota) if quota else allowed))


def _groups(membership: Path) -> tuple[PurePosixPath, ...]:
    """The cgroup of this process and its parents. The line of v2 is `0::/PATH`, with `/` in a container."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    own = PurePosixPath(next((line[3:].strip("/") for line in lines if line.startswith("0::")), ""))
    return own, *own.parents


def _quota_v2(path: Path) -> float | None:
    """CPUs by `cpu.max`, which holds "QUOTA PERIOD" in microseconds, or "max PERIOD" for no quota."""
    fields = path.read_text().split() if path.is_file() else []
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(folder: Path) -> float | None:
    """CPUs by `cpu.cfs_quota_us`, which is -1 for no quota."""
    quota, period = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if not (quota.is_file() and period.is_file()) or int(quota.read_text()) <= 0:
        return None
    return int(quota.read_text()) / int(period.read_text())


def _words(path: Path, key: str) -> list[str]:
    """The words after the first `key:` in a file of /proc, or an empty list."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].split() for line in lines if line.partition(":")[0].strip() == key), [])
