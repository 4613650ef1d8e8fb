"""How many tensor-parallel ranks a machine and a checkpoint allow: said at once; vLLM says it half a minute later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expo_search.errors import EngineError

_DEVICES = ("nvidia[0-9]*", "dxg", "kfd")  # under /dev, of NVIDIA's driver, of WSL, of AMD's


def check_ranks(ranks: int, config: Mapping[str, Any]) -> None:
    """Check the ranks of one engine against this machine and the aligned checkpoint's config.json.

    Raises:
        EngineError: more ranks than GPUs, or than cores where there is no GPU; heads that they cannot share.
    """
    if ranks == 1:
        return
    n, device = n_devices()
    text = config.get("text_config")
    heads = (text if isinstance(text, Mapping) else config).get("num_attention_heads")
    heads = heads if isinstance(heads, int) else 0  # not known: left to vLLM
    fitting = [str(r) for r in range(2, n + 1) if heads % r == 0]
    do = f"give --tensor-parallel {' or '.join(fitting)}" if fitting else "leave it out"
    where = f"--tensor-parallel {ranks}"
    if ranks > n:
        found = f"{n} {device}{'' if n == 1 else 's'}"
        raise EngineError(where=where, found=found, expected="a device for each rank", do=do)
    if heads % ranks:
        found = f"{heads} attention heads in the checkpoint"
        raise EngineError(where=where, found=found, expected="ranks that share its heads evenly", do=do)


def n_devices() -> tuple[int, str]:
    """(GPUs, "GPU"), or where there is none (cores, "core"). Loads torch only where a driver shows a GPU."""
    if any(True for pattern in _DEVICES for _ in Path("/dev").glob(pattern)):
        import torch

        if torch.cuda.device_count():
            return torch.cuda.device_count(), "GPU"
    return len(os.sched_getaffinity(0)), "core"
