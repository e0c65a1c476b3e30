"""How much memory this process may still take: the machine's, or its container's or job's if that is less.

Read from /proc and the cgroup's files (v2), which is where Docker, SLURM and Kubernetes set their limits.
"""

from pathlib import Path

GIGABYTE = 1_000_000_000


def available_bytes() -> int:
    """Give the bytes that can be allocated without swapping; memory that only caches files counts as free."""
    return min([_machine_available(), *_cgroup_available(Path("/sys/fs/cgroup"))])


def _machine_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no line MemAvailable; Linux 3.14 or later is needed")


def _cgroup_available(root: Path) -> list[int]:
    """What is left under each limit of the groups that hold this process; none where there is no limit."""
    entries = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((entry.removeprefix("0::").lstrip("/") for entry in entries if entry.startswith("0::")), "")
    available = []
    for group in [root / own, *(root / own).parents]:
        if (group / "memory.max").is_file() and (
            limit := (group / "memory.max").read_text().strip()
        ) != "max":
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(statistics["file"]) - int(statistics["shmem"])
            used = int((group / "memory.current").read_text()) - cached
            available.append(int(limit) - used)
        if group == root:
            break
    return available
