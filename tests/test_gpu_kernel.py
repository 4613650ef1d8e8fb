"""The GPU kernel's bits, by Triton's interpreter where there is no GPU: its arithmetic, not its compilation."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from expo_search.weights.fingerprint import WORDS_PER_BLOCK

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CHECK = """
import sys, torch
from expo_search.weights.formula import plain_theta
from expo_search.weights.fingerprint import MASK, WORDS_PER_BLOCK, Fingerprinter
from expo_search.weights.gpu_kernel import GpuKernel, _agrees
device = torch.device(sys.argv[1])
kernel = GpuKernel(device)
assert _agrees(kernel, device)
noise = torch.Generator().manual_seed(2)
for n in (0, 2, 2046, 2048, 2 * WORDS_PER_BLOCK, 2 * WORDS_PER_BLOCK + 2):
    aligned, sft = (torch.randn(n, generator=noise).bfloat16().to(device) for _ in range(2))
    out = torch.full_like(aligned, 7)
    for alpha in (0.0, 0.3):
        total = torch.full((), 3, dtype=torch.int64, device=device)
        kernel.switch(out, aligned, sft, alpha, total)
        expected = plain_theta(aligned, sft, alpha).bfloat16()
        assert torch.equal(out, expected), (n, alpha)
        assert (int(total) - 3) & MASK == Fingerprinter().tensor_sum(expected), (n, alpha)
assert not kernel.takes(torch.zeros(3, dtype=torch.bfloat16)) and not kernel.takes(torch.zeros(2))
print("agrees")
"""


def test_the_kernel_gives_the_bits_of_the_torch_versions() -> None:
    pytest.importorskip("triton")
    on_gpu = torch.cuda.is_available()
    environment = os.environ if on_gpu else os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, "cuda" if on_gpu else "cpu"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout == "agrees\n", run.stderr


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("alpha_is_zero", [False, True])
def test_it_compiles_for_nvidia_gpus_without_fusing_multiply_and_add(
    capability: int, alpha_is_zero: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's own compiler and assembler, which need no GPU: Ampere, Hopper, Blackwell."""
    pytest.importorskip("triton")
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from expo_search.weights import gpu_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"COPY": alpha_is_zero, "STRIP": gpu_kernel._STRIP, "BLOCK": WORDS_PER_BLOCK}
    pointers = dict.fromkeys(("out", "aligned", "sft", "keys"), "*i32") | dict.fromkeys(("block_keys", "total"), "*i64")
    signature = pointers | {"alpha": "fp32", "n_words": "i32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(gpu_kernel._switch, {name: signature[name] for name in gpu_kernel._switch.arg_names}, constants)
    made = compiled(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    assert made.asm["cubin"]
    assert "fma" not in made.asm["ptx"]
    assert ("mul.rn.f32" in made.asm["ptx"]) is not alpha_is_zero
    assert ".add.u64" in made.asm["ptx"]  # the fingerprint's sum


def test_a_device_on_which_the_kernel_does_not_run_is_told_why_once(caplog: pytest.LogCaptureFixture) -> None:
    """Triton has no compiler for a CPU."""
    pytest.importorskip("triton")
    from expo_search.weights.gpu_kernel import gpu_kernel_fault, load_gpu_kernel

    with caplog.at_level(logging.WARNING):
        assert load_gpu_kernel(torch.device("cpu")) is None
        assert load_gpu_kernel(torch.device("cpu")) is None
    fault = gpu_kernel_fault(torch.device("cpu"))
    assert fault is not None
    assert fault.isprintable()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("expo_search.weights.gpu_kernel", "WARNING")
    assert fault in record.getMessage()


def test_a_kernel_with_other_bits_is_not_used_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from expo_search.weights import gpu_kernel

    monkeypatch.setattr(gpu_kernel, "_agrees", lambda *_: False)
    device = torch.device("meta")  # asked for by no other test: answers are kept
    assert gpu_kernel.load_gpu_kernel(device) is None
    assert gpu_kernel.gpu_kernel_fault(device) == "on meta its bits are not those of torch"


@pytest.mark.parametrize(("device", "n_wrong"), [("cuda:99", 1), ("cpu", 0)])
def test_the_check_of_a_gpu_fails_where_the_kernel_is_not_used_and_says_why(
    device: str, n_wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is one that no GPU has. On a CPU it is the script that is tried."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    said: list[str] = []
    assert import_module("gpu").kernel_bits(torch.device(device), said.append) == n_wrong
    assert re.fullmatch(r"Triton kernel: NOT USED: \w.+", "\n".join(said))


def test_what_a_profile_of_a_switch_holds_is_counted_by_where_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    on_device = ["_switch", "_switch", "Memcpy HtoD (Pinned -> Device)", "Memset (Device)", "CatArrayBatched"]
    on_host = ["cuLaunchKernelEx", "cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "aten::_to_copy"]
    counts = import_module("gpu").tally([(name, True) for name in on_device] + [(name, False) for name in on_host])
    assert counts == {"kernels": 3, "copies": 2, "waits": 1}
