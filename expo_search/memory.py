"""What a search will hold in memory, computed from headers before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expo_search.checkpoint import Checkpoint
from expo_search.errors import EngineError

_GIB = 1 << 30
_LIBRARIES_BYTES = int(1.5 * _GIB)  # an allowance for torch, vllm and transformers themselves
_ACTIVATIONS_SHARE = 0.1  # of a GPU: activations and CUDA graphs, as vLLM's own default leaves


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose on one device (a GPU holds 1 / tensor_parallel of the weights).

    Attributes:
        weights: the live model. sources: aligned and sft, which every switch reads. reward_model: with its activations.
        kv_cache: on a CPU what is asked for; on a GPU at least this much must be left.
    """

    weights: int
    sources: int
    reward_model: int
    kv_cache: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.sources + self.reward_model + self.kv_cache + self.other

    def sentence(self) -> str:
        parts = (
            ("weights", self.weights),
            ("sources", self.sources),
            ("KV cache", self.kv_cache),
            ("reward model", self.reward_model),
            ("other", self.other),
        )
        return (
            "memory plan: "
            + " + ".join(f"{name} {size / _GIB:.1f}" for name, size in parts)
            + f" = {self.total / _GIB:.1f} GiB"
        )

    def check(self, available: int, where: str) -> None:
        """
        Raises:
            EngineError: the plan needs more than is available; says what would fit.
        """
        if self.total > available:
            raise EngineError(
                where=where,
                found=f"{available / _GIB:.1f} GiB free",
                expected=f"{self.total / _GIB:.1f} GiB ({self.sentence()})",
                do="free memory, take a smaller pair or reward model, or more GPUs (--tensor-parallel)",
            )


def plan_memory(
    aligned: Checkpoint, sft: Checkpoint, reward_bytes: int, *, kv_cache: int, ranks: int, cuda: bool, device_bytes: int
) -> MemoryPlan:
    """The plan of one device."""
    other = int(device_bytes * _ACTIVATIONS_SHARE) if cuda else _LIBRARIES_BYTES
    return MemoryPlan(
        aligned.n_bytes // ranks, (aligned.n_bytes + sft.n_bytes) // ranks, int(reward_bytes * 1.1), kv_cache, other
    )


def free_memory() -> tuple[int, int, bool]:
    """(free bytes, total bytes, is a GPU) of the device that an engine would use."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return free, total, True
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit, used in _cgroup_limits():
        free, total = min(free, limit - used), min(total, limit)
    return free, total, False


def _cgroup_limits() -> list[tuple[int, int]]:
    """A container's own limit and what of it cannot be freed, where there is one."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        statistics = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        used = int((root / "memory.current").read_text()) - int(statistics.get("file", 0))
        return [] if limit == "max" else [(int(limit), used)]
    except (OSError, ValueError):
        return []
