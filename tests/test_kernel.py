"""The compiled kernel equals the torch versions to the bit: written weights, and the sums of the fingerprint."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from expo_search.extrapolate import plain_theta
from expo_search.fingerprint import WORDS_PER_BLOCK, Fingerprinter
from expo_search.kernel import ALIGNED_ENDED, SFT_ENDED, STREAM_BYTES, TOO_LARGE, Kernel, Place, Plan, Task, load_kernel

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


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_many_weights_at_once_are_each_written_and_summed_once_by_any_number_of_threads(
    kernel: Kernel, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_n_threads", n_threads)
    noise = torch.Generator().manual_seed(3)
    sizes = [1, 0, 600_001, 3, BLOCK, 2 * BLOCK + 1, 0, 900_000, 2]
    sources = [tuple(torch.randn(n, generator=noise).bfloat16() for _ in range(2)) for n in sizes]
    memory = torch.full((sum(sizes) + len(sizes),), 7.0).bfloat16()  # one element apart, so that overruns show
    outs = [memory[sum(sizes[:i]) + i :][:n] for i, n in enumerate(sizes)]
    sums = kernel.run(Plan([Task(a, s, out) for (a, s), out in zip(sources, outs, strict=True)]), 0.7)
    expected = [plain_theta(a, s, 0.7).bfloat16() for a, s in sources]
    seven = torch.tensor([7.0]).bfloat16()
    assert torch.equal(memory, torch.cat([part for theta in expected for part in (theta, seven)]))
    assert sums == [Fingerprinter().tensor_sum(theta) for theta in expected]


@pytest.mark.parametrize("n", [1, 7, 1 << 16, 3 * (1 << 16) + 5, 1 << 20, (1 << 21) + 12345])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_from_two_files_to_a_third_at_any_place_in_them(kernel: Kernel, n: int, alpha: float, tmp_path: Path) -> None:
    memory = torch.empty(STREAM_BYTES, dtype=torch.uint8)
    sources = [torch.randn(n, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (1, 2)]
    for name, before, source in (("aligned", 3, sources[0]), ("sft", 11, sources[1])):
        (tmp_path / name).write_bytes(bytes(before) + source.view(torch.uint8).numpy().tobytes() + b"more")
    (tmp_path / "out").write_bytes(b"before")
    with ExitStack() as stack:
        files = [stack.enter_context((tmp_path / name).open("r+b")) for name in ("aligned", "sft", "out")]
        places = [Place(file.fileno(), offset) for file, offset in zip(files, (3, 11, 6), strict=True)]
        assert kernel.stream(*places, n, alpha, memory) == 0
    expected = plain_theta(*sources, alpha).bfloat16()
    assert (tmp_path / "out").read_bytes() == b"before" + expected.view(torch.uint8).numpy().tobytes()


def test_a_stream_says_what_stopped_it(kernel: Kernel, tmp_path: Path) -> None:
    memory = torch.empty(STREAM_BYTES, dtype=torch.uint8)
    (tmp_path / "long").write_bytes(torch.full((8,), 3e38).bfloat16().view(torch.uint8).numpy().tobytes())
    (tmp_path / "short").write_bytes(bytes(10))
    with (
        (tmp_path / "long").open("rb") as long,
        (tmp_path / "short").open("rb") as short,
        Path("/dev/full").open("wb") as out,
    ):
        a, s, full = Place(long.fileno(), 0), Place(short.fileno(), 0), Place(out.fileno(), 0)
        assert kernel.stream(s, a, full, 8, 0.5, memory) == ALIGNED_ENDED
        assert kernel.stream(a, s, full, 8, 0.5, memory) == SFT_ENDED
        assert kernel.stream(a, s, full, 5, 0.5, memory) == TOO_LARGE
        with pytest.raises(OSError, match="No space left"):
            kernel.stream(s, s, full, 5, 0.5, memory)
        with pytest.raises(OSError, match="Bad file descriptor"):
            kernel.stream(full, s, full, 5, 0.5, memory)


def test_no_weights_are_no_work(kernel: Kernel) -> None:
    assert kernel.run(Plan([]), 0.3) == []


def test_other_dtypes_and_layouts_are_left_to_torch(kernel: Kernel) -> None:
    a = torch.zeros(4, 4, dtype=torch.bfloat16)
    assert kernel.takes(a, a, a)
    assert not kernel.takes(a, a, a.float())
    assert not kernel.takes(a.t()[:2], a, a)
