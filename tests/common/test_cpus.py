"""The number of CPUs, from an affinity mask and the files of a cgroup."""

import os
from pathlib import Path

import pytest

from service.common.cpus import cpu_model, cpu_quota, host, memory_limit


@pytest.fixture(autouse=True)
def _sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may run on sixteen CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000\n", 16),
        ("400000 100000\n", 4),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("200000 50000\n", 4),
        ("6400000 100000\n", 16),
        ("", 16),
    ],
)
def test_quota_of_v2(text: str, cpus: int, tmp_path: Path) -> None:
    """cgroup v2 gives quota over period, rounded up; more than the mask allows, or none, is the mask."""
    (tmp_path / "cpu.max").write_text(text)

    assert cpu_quota(tmp_path, tmp_path / "none") == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(-1, 16), (0, 16), (300_000, 3), (250_000, 3), (1000, 1)])
def test_quota_of_v1(quota: int, cpus: int, tmp_path: Path) -> None:
    """cgroup v1 gives the same from two files, and -1 for none."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")

    assert cpu_quota(tmp_path, tmp_path / "none") == cpus


def test_v1_without_period(tmp_path: Path) -> None:
    """Half of the files of v1 is none of them."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")

    assert cpu_quota(tmp_path, tmp_path / "none") == 16


@pytest.mark.parametrize(
    ("membership", "cpus"),
    [
        ("0::/\n", 12),
        ("0::/system.slice\n", 6),
        ("0::/system.slice/topfive.service\n", 6),
        ("0::/user.slice/tight\n", 2),
        ("1:cpu:/elsewhere\n0::/user.slice/tight\n", 2),
        ("0::/gone/away\n", 12),
        ("1:cpu:/\n", 12),
        ("", 12),
    ],
)
def test_group_of_the_process(membership: str, cpus: int, tmp_path: Path) -> None:
    """Outside a container the least quota counts: of the process's own group and of all that it is in."""
    for folder, text in {
        ".": "1200000 100000",
        "system.slice": "600000 100000",
        "system.slice/topfive.service": "800000 100000",
        "user.slice": "max 100000",
        "user.slice/tight": "200000 100000",
    }.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cpu.max").write_text(text)
    (tmp_path / "membership").write_text(membership)

    assert cpu_quota(tmp_path, tmp_path / "membership") == cpus


def test_no_cgroup(tmp_path: Path) -> None:
    """Without cgroups the affinity mask is all there is."""
    assert cpu_quota(tmp_path / "none", tmp_path / "none") == 16


def test_no_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no affinity mask the machine's CPUs count, at least one."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cpu_quota(tmp_path, tmp_path) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_quota(tmp_path, tmp_path) == 1


def test_this_machine() -> None:
    """On whatever runs this test there is at least one CPU."""
    assert 1 <= cpu_quota() <= 16


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
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "membership").write_text("0::/app\n")

    assert memory_limit(tmp_path, tmp_path / "membership") == limit


def test_host(tmp_path: Path) -> None:
    """Instruction sets have the names people know, in a fixed order; others are left out, and so is what is unknown."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu amx_tile avx512f avx2 amx_bf16\nflags\t: none\n")
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    found = host(tmp_path / "none", tmp_path / "none", tmp_path)

    assert found.instruction_sets == ("AVX2", "AVX-512", "AMX tile", "AMX bf16")
    assert (found.cpus, found.memory_bytes, found.limit_bytes) == (16, 16 << 20, None)
    assert host(tmp_path / "none", tmp_path / "none", tmp_path / "none").memory_bytes is None


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
