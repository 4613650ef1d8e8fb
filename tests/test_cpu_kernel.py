"""The compiled kernel equals the torch versions to the bit: written weights, and the sums of the fingerprint."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from expo_search.weights import cpu_kernel
from expo_search.weights.cpu_kernel import (
    ALIGNED_ENDED,
    SFT_ENDED,
    STREAM_BYTES,
    TOO_LARGE,
    Kernel,
    Place,
    kernel_fault,
    load_kernel,
)
from expo_search.weights.fingerprint import WORDS_PER_BLOCK, Fingerprinter
from expo_search.weights.formula import plain_theta

BLOCK = 2 * WORDS_PER_BLOCK  # elements


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    found = load_kernel()
    if found is None:
        pytest.skip("no C compiler here: the torch versions are used")
    return found


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4095, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 11 * BLOCK + 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, -1.0, 25.0])
def test_any_length_gives_the_bits_of_the_torch_versions(kernel: Kernel, n: int, alpha: float) -> None:
    noise = torch.Generator().manual_seed(n)
    aligned = torch.randn(n, generator=noise).bfloat16()
    sft = (aligned.float() + 0.01 * torch.randn(n, generator=noise)).bfloat16()
    out = torch.full((n,), 7.0).bfloat16()
    tensor_sum = kernel.switch(out, aligned, sft, alpha)
    expected = plain_theta(aligned, sft, alpha).bfloat16()
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))
    assert tensor_sum == Fingerprinter().tensor_sum(expected)


@pytest.mark.parametrize("alpha", [0.7, -0.4, 8.0, 1e6])
def test_every_pair_of_bit_patterns_rounds_alike(kernel: Kernel, alpha: float) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    aligned = patterns[patterns.isfinite()].repeat(8)
    sft = aligned[torch.randperm(len(aligned), generator=torch.Generator().manual_seed(5))]
    out = torch.empty_like(aligned)
    kernel.switch(out, aligned, sft, alpha)
    expected = plain_theta(aligned, sft, alpha).bfloat16()
    finite = expected.isfinite()  # what overflows is an error elsewhere; NaN has many bit patterns
    assert torch.equal(out[finite].view(torch.int16), expected[finite].view(torch.int16))
    assert torch.equal(out.isfinite(), finite)


@pytest.mark.parametrize("n", [1, 5, 255, 257, BLOCK + 1, 600_001])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_wide_weight_holds_the_rounded_numbers_widened_and_the_sum_is_theirs(
    kernel: Kernel, n: int, alpha: float
) -> None:
    noise = torch.Generator().manual_seed(n)
    aligned, sft = (torch.randn(n, generator=noise).bfloat16() for _ in range(2))
    memory = torch.full((n + 2,), 7.0)  # an element before and after, so that overruns show
    tensor_sum = kernel.switch(memory[1:-1], aligned, sft, alpha)
    expected = plain_theta(aligned, sft, alpha).bfloat16()
    assert torch.equal(memory, torch.nn.functional.pad(expected.float(), (1, 1), value=7.0))
    assert tensor_sum == Fingerprinter().tensor_sum(expected)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 3, 2 * BLOCK + 1, 600_001])
def test_every_element_is_written_and_summed_once_by_any_number_of_threads(
    kernel: Kernel, n_threads: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_n_threads", n_threads)
    noise = torch.Generator().manual_seed(3)
    aligned, sft = (torch.randn(n, generator=noise).bfloat16() for _ in range(2))
    memory = torch.full((n + 2,), 7.0).bfloat16()
    tensor_sum = kernel.switch(memory[1:-1], aligned, sft, 0.7)
    expected = plain_theta(aligned, sft, 0.7).bfloat16()
    assert torch.equal(memory[1:-1], expected)
    assert memory[[0, -1]].tolist() == [7.0, 7.0]
    assert tensor_sum == Fingerprinter().tensor_sum(expected)


DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def streamed(
    kernel: Kernel, folder: Path, aligned: torch.Tensor, sft: torch.Tensor, alpha: float, dtype: torch.dtype
) -> torch.Tensor | None:
    """theta(alpha) in `dtype` by way of three files, at odd places in them; None: too large a number."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    memory = torch.empty(STREAM_BYTES, dtype=torch.uint8)
    for name, before, source in (("aligned", 3, aligned), ("sft", 11, sft)):
        (folder / name).write_bytes(bytes(before) + source.view(torch.uint8).numpy().tobytes() + b"more")
    (folder / "out").write_bytes(b"before")
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("r+b")) for name in ("aligned", "sft", "out")]
        dtypes = [names[d] for d in (aligned.dtype, sft.dtype, dtype)]
        a, s, out = (Place.of(f.fileno(), at, d) for f, at, d in zip(files, (3, 11, 6), dtypes, strict=True))
        fault = kernel.stream(a, s, out, len(aligned), alpha, memory)
    if fault == TOO_LARGE:
        return None
    assert fault == 0
    written = (folder / "out").read_bytes()
    assert written[:6] == b"before"
    return torch.frombuffer(bytearray(written[6:]), dtype=dtype)


@pytest.mark.parametrize("n", [1, 7, 1 << 15, 3 * (1 << 16) + 5, 1 << 20, (1 << 21) + 12345])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_from_two_files_to_a_third_at_any_place_in_them(kernel: Kernel, n: int, alpha: float, tmp_path: Path) -> None:
    a, s = (torch.randn(n, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (1, 2))
    out = streamed(kernel, tmp_path, a, s, alpha, torch.bfloat16)
    assert out is not None
    assert torch.equal(out.view(torch.int16), plain_theta(a, s, alpha).bfloat16().view(torch.int16))


@pytest.mark.parametrize("alpha", [0.0, 0.7, -3.0])
@pytest.mark.parametrize(("aligned", "sft", "out"), [*itertools.product(DTYPES, repeat=3)])
def test_files_of_any_floating_dtypes_are_rounded_once_as_by_torch(
    kernel: Kernel, aligned: str, sft: str, out: str, alpha: float, tmp_path: Path
) -> None:
    """Any bits: subnormal numbers, ties, the largest; those whose theta is not finite are refused, so left out here."""
    if not kernel.streams(aligned, sft, out):
        pytest.skip("no float16 in this compiler: the torch version is used")
    n = 200_003
    a, s = (
        torch.randint(
            -(1 << 31), (1 << 31) - 1, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32
        ).view(DTYPES[name])[:n]
        for seed, name in ((1, aligned), (2, sft))
    )
    expected = plain_theta(a, s, alpha).to(DTYPES[out])
    usable = a.isfinite() & s.isfinite() & expected.isfinite()
    assert usable.sum() > n // 20
    made = streamed(kernel, tmp_path, a[usable], s[usable], alpha, DTYPES[out])
    assert made is not None
    assert torch.equal(made.view(torch.uint8), expected[usable].view(torch.uint8))


@pytest.mark.parametrize(("dtype", "first"), [("BF16", 0x7F7F8000), ("F16", 0x477FF000), ("F32", 0x7F800000)])
def test_the_least_number_that_a_dtype_cannot_hold_is_refused(
    kernel: Kernel, dtype: str, first: int, tmp_path: Path
) -> None:
    """A tie above the largest number of a narrower dtype rounds to infinity. `first`: its bits as a float32."""
    if not kernel.streams(dtype):
        pytest.skip("no float16 in this compiler: the torch version is used")
    sign, nan = -(1 << 31), -1
    for bits, fits in (
        (first - 1, True),
        (first - 1 + sign, True),
        (first, False),
        (first + sign, False),
        (nan, False),
    ):
        number = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        rounded = number.to(DTYPES[dtype])
        assert rounded.isfinite().item() == fits
        made = streamed(kernel, tmp_path, number, number, 0.0, DTYPES[dtype])
        assert (made is not None) == fits
        assert made is None or torch.equal(made, rounded)


def test_a_stream_says_what_stopped_it(kernel: Kernel, tmp_path: Path) -> None:
    memory = torch.empty(STREAM_BYTES, dtype=torch.uint8)
    (tmp_path / "long").write_bytes(torch.full((8,), 3e38).bfloat16().view(torch.uint8).numpy().tobytes())
    (tmp_path / "short").write_bytes(bytes(10))
    with (
        (tmp_path / "long").open("rb") as long,
        (tmp_path / "short").open("rb") as short,
        Path("/dev/full").open("wb") as out,
    ):
        a, s, full = (Place.of(file.fileno(), 0, "BF16") for file in (long, short, out))
        assert kernel.stream(s, a, full, 8, 0.5, memory) == ALIGNED_ENDED
        assert kernel.stream(a, s, full, 8, 0.5, memory) == SFT_ENDED
        assert kernel.stream(a, s, full, 5, 0.5, memory) == TOO_LARGE
        with pytest.raises(OSError, match="No space left"):
            kernel.stream(s, s, full, 5, 0.5, memory)
        with pytest.raises(OSError, match="Bad file descriptor"):
            kernel.stream(full, s, full, 5, 0.5, memory)


def test_only_floating_dtypes_are_streamed(kernel: Kernel) -> None:
    assert kernel.streams("BF16", "F32")
    assert not kernel.streams("BF16", "F64")
    assert not kernel.streams("I64", "BF16")


def test_other_dtypes_and_layouts_are_left_to_torch(kernel: Kernel) -> None:
    a = torch.zeros(4, 4, dtype=torch.bfloat16)
    assert kernel.takes(a, a, a)
    assert kernel.takes(a.float(), a, a)
    assert not kernel.takes(a, a, a.float())
    assert not kernel.takes(a.half(), a, a)
    assert not kernel.takes(a.t()[:2], a, a)
    assert not kernel.takes(a.to("meta"), a, a)  # an output elsewhere, whose sources stay in host memory


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As a process that has not asked for the kernel yet, with an empty cache folder; the folder."""
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    for function in (cpu_kernel.load_kernel, cpu_kernel._load):
        function.cache_clear()
    yield tmp_path / "cache"
    for function in (cpu_kernel.load_kernel, cpu_kernel._load):
        function.cache_clear()


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("printf 'In file a.c:\\nb.c:3: error: no such header\\nc.c:4: error: more\\n' >&2; exit 4",
         "ended with exit status 4: b.c:3: error: no such header"),
        ("exit 1", "ended with exit status 1: no message"),
        ("printf 'odd \\033[31m\\377 words' >&2; exit 2", "ended with exit status 2: odd"),
        ("while [ $# -gt 1 ]; do [ $1 = -o ] && echo none > $2; shift; done", "OSError"),
        ("exit 0", "FileNotFoundError"),
    ],
    ids=["errors", "silent", "control characters", "no library", "no output"],
)  # fmt: skip
def test_a_kernel_that_cannot_be_compiled_says_why_once_in_one_line(
    afresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    told: str,
) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path / "cc", script))
    with caplog.at_level(logging.WARNING):
        assert load_kernel() is None
        assert load_kernel() is None
    fault = kernel_fault()
    assert fault is not None
    assert told in fault
    assert fault.isprintable()
    assert [(r.name, r.levelname) for r in caplog.records] == [("expo_search.weights.cpu_kernel", "WARNING")]
    assert fault in caplog.text


def test_the_compiler_may_be_several_words(
    kernel: Kernel, afresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ccache gcc`."""
    cache = compiler(tmp_path / "a cache", 'exec "$@"')
    monkeypatch.setenv("CC", f"'{cache}' cc")
    assert kernel_fault() is None


def test_where_there_is_no_compiler_at_all_the_path_was_looked_through(
    afresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(afresh))
    assert kernel_fault() == "no C compiler: $CC is not set, and there is no cc, gcc or clang on the path"


def test_a_kernel_that_is_compiled_has_no_fault_and_warns_of_nothing(
    kernel: Kernel, afresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert kernel_fault() is None
        assert load_kernel() is not None
    assert len(list(afresh.glob("kernels/expo-*.so"))) == 1
    assert not caplog.records
