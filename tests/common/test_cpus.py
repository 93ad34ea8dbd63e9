"""What the machine gives this process: CPUs and memory, from an affinity mask and the files of a cgroup."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.common.cpus import cpu_model, cpu_quota, host, memory_limit


@pytest.fixture(autouse=True)
def _sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may run on sixteen CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)), raising=False)


def cgroup(root: Path, files: Mapping[str, str], membership: str) -> tuple[Path, Path]:
    """A file system of cgroups with these files, and a process in these groups."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "membership").write_text(membership)
    return root, root / "membership"


def v1(quota: int, period: int = 100_000) -> dict[str, str]:
    """The quota as cgroup v1 has it."""
    return {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu.max": ""}, 16),
        (v1(-1), 16),
        (v1(0), 16),
        (v1(250_000), 3),
        (v1(1000), 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, 16),
    ],
)
def test_quota(files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    """cgroups v2 and v1 give quota over period, rounded up; without a quota, or with more, the affinity mask counts."""
    assert cpu_quota(*cgroup(tmp_path, files, "")) == cpus


@pytest.mark.parametrize(
    ("membership", "cpus"),
    [
        ("0::/\n", 12),
        ("0::/system.slice\n", 6),
        ("0::/system.slice/topfive.service\n", 6),
        ("1:cpu:/elsewhere\n0::/user.slice/tight\n", 2),
        ("0::/gone/away\n", 12),
        ("", 12),
    ],
)
def test_group_of_the_process(membership: str, cpus: int, tmp_path: Path) -> None:
    """Outside a container the least quota counts: of the process's own group and of all groups around it."""
    files = {
        "cpu.max": "1200000 100000",
        "system.slice/cpu.max": "600000 100000",
        "system.slice/topfive.service/cpu.max": "800000 100000",
        "user.slice/cpu.max": "max 100000",
        "user.slice/tight/cpu.max": "200000 100000",
    }
    assert cpu_quota(*cgroup(tmp_path, files, membership)) == cpus


@pytest.mark.parametrize(("machine", "cpus"), [(5, 5), (None, 1)])
def test_no_affinity(machine: int | None, cpus: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no affinity mask the machine's CPUs count, at least one."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)

    assert cpu_quota(tmp_path / "none", tmp_path / "none") == cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory.max": "1073741824\n", "app/memory.max": "536870912\n"}, 1 << 29),
        ({"memory.max": "536870912\n", "app/memory.max": "max\n"}, 1 << 29),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory/memory.limit_in_bytes": "2147483648\n"}, 2 << 30),
    ],
)
def test_memory_limit(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    """The smallest limit of the process's groups counts, of v2 or v1; "max" and v1's largest number are none."""
    assert memory_limit(*cgroup(tmp_path, files, "0::/app\n")) == limit


def test_host(tmp_path: Path) -> None:
    """Instruction sets have the names people know, in a fixed order, without others and without unknown ones."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu amx_tile avx512f avx2 amx_bf16\nflags\t: none\n")
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    none = tmp_path / "none"
    found = host(none, none, tmp_path)

    assert found.instruction_sets == ("AVX2", "AVX-512", "AMX tile", "AMX bf16")
    assert (found.cpus, found.memory_bytes, found.limit_bytes) == (16, 16 << 20, None)
    assert host(none, none, none).memory_bytes is None


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: Xeon(R) at 2 GHz\nmodel name\t: other\n", "Xeon(R) at 2 GHz"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "0x41 0xd40"),
        ("", "unknown"),
    ],
)
def test_cpu_model(cpuinfo: str, name: str, tmp_path: Path) -> None:
    """A processor has its name, or on Arm its numbers; without either it is unknown."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)

    assert cpu_model(tmp_path) == name
