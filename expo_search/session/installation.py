"""What this machine and this installation can do -> facts, each with what to do about it.

Packages are looked up, torch is imported, the kernels are compiled as a search would; no engine is started. So a
package that is there and broken is found out only where it is torch.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec

from expo_search.config.options import DEFAULT_STORAGE
from expo_search.dtypes import Float, arithmetic, has_instructions
from expo_search.engine.machine import has_gpu, installed_version, measure_machine, processor
from expo_search.engine.start import INSTALL
from expo_search.engine.vllm_version import KNOWN, installed_vllm, is_known
from expo_search.errors import EngineError
from expo_search.folders import cache_folder
from expo_search.session.fact import Fact, gib, short
from expo_search.session.surroundings import driver, surroundings
from expo_search.version import __version__

_NEEDED = ("transformers", "optuna", "datasets", "safetensors")
# versions that the tests ran with, of what is not pinned
TESTED = {
    "torch": "2.13",
    "transformers": "5.19",
    "optuna": "5.0",
    "datasets": "5.2",
    "safetensors": "0.8",
    "ray": "2.60",
}
_DTYPES: tuple[Float, ...] = ("bfloat16", "float16", "float32")


def inspect_installation(storage: str = DEFAULT_STORAGE) -> list[Fact]:
    """The facts, in the order in which one depends on the other. Imports torch; takes seconds.

    `storage`: URL of the database that a search would use.
    """
    facts = [Fact("expo-search", __version__), Fact("Python", platform.python_version())]
    torch_fact = _torch()
    facts += [
        torch_fact,
        _vllm(has_torch=torch_fact.status == "ok"),
        *map(_needed, _NEEDED),
        _dashboard(),
        _ray(),
        _cache(),
    ]
    facts += surroundings(storage)
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
        found = f"cannot be imported ({short(fault)})"
        return Fact("torch", found, "missing", f"install torch: {INSTALL.removeprefix('install it with: ')}")
    return Fact("torch", _against_tested("torch", str(torch.__version__)))


def _against_tested(package: str, version: str) -> str:
    """A version, and the tested one where that is another."""
    tested = TESTED[package]
    return version if version.split(".")[:2] == tested.split(".") else f"{version}; tested with {tested}"


def _vllm(*, has_torch: bool) -> Fact:
    if find_spec("vllm") is None:
        return Fact("vllm", "not installed", "missing", INSTALL)
    package, version = installed_vllm()
    text = f"{package} {version}" if version else "of a version that is not known"
    is_for_cpu = "cpu" in text  # in the package's name, or in the version of one built from source
    if version and has_torch and is_for_cpu == has_gpu():
        if is_for_cpu:
            return Fact("vllm", f"{text}, a build for CPUs beside a GPU", "remark", 'pip install "expo-search[gpu]"')
        return Fact("vllm", f"{text}, a build for GPUs, and there is none", "missing", 'pip install "expo-search[cpu]"')
    if not is_known(version):
        known = f"this version of expo-search knows {KNOWN}"
        return Fact("vllm", f"{text}; {known}", "remark", f'pip install "{package or "vllm"}=={KNOWN}.*"')
    return Fact("vllm", text)


def _needed(package: str) -> Fact:
    version = installed_version(package)
    if not version:
        return Fact(package, "not installed", "missing", f"pip install {package}")
    return Fact(package, _against_tested(package, version))


def _dashboard() -> Fact:
    version = installed_version("optuna-dashboard")
    if version:
        return Fact("optuna-dashboard", version)
    without = "not installed; `expo-search dashboard` needs it, a search does not"
    return Fact("optuna-dashboard", without, "remark", 'pip install "expo-search[dashboard]"')


def _ray() -> Fact:
    version = installed_version("ray")
    if version:
        return Fact("ray", _against_tested("ray", version))
    without = "not installed; more than one engine (--engines) needs it, one does not"
    return Fact("ray", without, "remark", 'pip install "expo-search[ray]"')


def _cache() -> Fact:
    """A file is written there and removed: rights alone do not tell of a file system that is read-only or full."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"probe")
        return Fact("cache folder", f"{folder}, {gib(shutil.disk_usage(folder).free)} free")
    except OSError as fault:
        lost = "no place for compiled kernels, and for pairs that are built (--adapter, --pair demo)"
        do = "set EXPO_SEARCH_CACHE to a folder that can be written to"
        return Fact("cache folder", f"{folder} cannot be written to ({short(fault)}): {lost}", "remark", do)


def _hardware() -> Iterator[Fact]:
    import torch

    native = [dtype for dtype in _DTYPES if has_instructions(dtype)]
    widened = "" if "bfloat16" in native else ", to which an engine on it widens bfloat16 weights"
    text = f"{processor()}, {torch.get_num_threads()} threads; multiplies in {', '.join(native)}{widened}"
    yield Fact("processor", text)
    yield _instructions()
    if has_gpu():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Fact("GPUs", f"{', '.join(names)}; CUDA {torch.version.cuda}; driver {driver() or 'not known'}")
    elif driver() is not None:
        yield Fact(
            "GPUs",
            f"an NVIDIA driver{f' {driver()}' if driver() else ''}, and no GPU that torch sees",
            "remark",
            'pip install "expo-search[gpu]"',
        )
    else:
        yield Fact("GPUs", "none; an engine runs on the processor")
    try:
        machine = measure_machine()
    except RuntimeError as fault:  # CUDA's, of a GPU that does not answer or is another process's alone
        yield Fact("memory", f"not known ({short(fault)})", "missing", "see that the GPU answers (nvidia-smi)")
        return
    yield Fact("memory", f"{gib(machine.host_free)} free")
    if machine.has_gpu:
        yield Fact("GPU memory", f"{gib(machine.gpu_free)} of {gib(machine.gpu_total)} free")


def _instructions() -> Fact:
    """What of a processor's instructions decides the arithmetic, and what that is for the dtypes of checkpoints."""
    import torch

    vectors = ("avx", "amx", "bf16", "fp16", "sve")
    there = sorted(
        name for name, has in torch.cpu.get_capabilities().items() if has is True and name.startswith(vectors)
    )
    if has_gpu():
        follows = (
            "arithmetic on the GPU is the weights' own dtype, but float32 for bfloat16 below compute capability 8.0"
        )
    else:
        of = defaultdict[Float, list[str]](list)
        for dtype in _DTYPES:
            of[arithmetic("auto", dtype, native=has_instructions(dtype), where="weights")].append(dtype)
        follows = "; ".join(f"weights in {_listed(dtypes)} are multiplied in {own}" for own, dtypes in of.items())
    return Fact("instructions", f"{', '.join(there) or 'none that torch knows'}; {follows}")


def _listed(names: Sequence[str]) -> str:
    """As people list them: "a, b and c"."""
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


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
        fault = short(missing)
    if fault is None:
        yield Fact("Triton kernel", "compiled, and gives torch's bits")
    else:
        cost = "torch does its work to the same bits, and a switch moves about ten times the bytes"
        yield Fact("Triton kernel", f"none: {fault}; {cost}", "remark", "install the Triton that torch asks for")
