"""The exported checkpoint: to the bit the formula that NumPy computes, whole or not there at all."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from twins import edit, make_pair, offline_checkpoint, pad_vocabulary_with, read_all, shrink_vocabulary

from expo_search.checkpoint.atomic_folder import published
from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.side_files import set_chat_template, set_stops
from expo_search.errors import CheckpointError, ExpoError, StudyError
from expo_search.exporting.checkpoint import Format, export
from expo_search.weights.shape import Shape, ShapedAlpha


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"), "llama-untied")


def write(aligned: Path, sft: Path, alpha: float, out: Path, form: Format = Format(), **options: Any) -> Path:  # noqa: B008 (frozen)
    sources = open_checkpoint(aligned, role="aligned"), open_checkpoint(sft, role="sft")
    export(*sources, alpha, out, form, **options)
    return out


def named(folder: Path) -> None:
    """What an export of a study leaves, by which its folder is known."""
    (folder / "expo.json").write_text("{}")


def make_flat_pair(folder: Path, n: int) -> None:
    """aligned/ and sft/ with one weight of n bfloat16 elements, and a counter before it in the file."""
    random = torch.Generator().manual_seed(0)
    for name in ("aligned", "sft"):
        (folder / name).mkdir()
        weight = torch.randn(n, generator=random).bfloat16()
        save_file({"weight": weight, "step": torch.tensor([7])}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"architectures": ["X"]}')


def same_bits(one: Path, other: Path) -> bool:
    a, b = read_all(one), read_all(other)
    return a.keys() == b.keys() and all(torch.equal(a[k].view(torch.int16), b[k].view(torch.int16)) for k in a)


@contextmanager
def refused(found: str, kind: type[ExpoError] = StudyError) -> Iterator[None]:
    with pytest.raises(kind, match=found) as fault:
        yield
    assert "\n" not in str(fault.value)


class TestWeights:
    @pytest.mark.parametrize("alpha", [0.0, 0.7, -0.4, 8.0])
    def test_they_are_the_formulas_to_the_bit(self, pair: tuple[Path, Path], alpha: float, tmp_path: Path) -> None:
        out = write(*pair, alpha, tmp_path / "out")
        assert same_bits(out, offline_checkpoint(*pair, alpha, tmp_path / "offline"))

    def test_they_are_the_same_where_there_is_no_compiler(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        out = write(*pair, 0.7, tmp_path / "out")
        assert same_bits(out, offline_checkpoint(*pair, 0.7, tmp_path / "offline"))

    @pytest.mark.parametrize("compiled", [True, False])
    def test_with_a_shape_each_is_the_formulas_at_its_own_alpha(
        self, pair: tuple[Path, Path], compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not compiled:
            monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        alpha = ShapedAlpha(0.7, Shape("blocks:2", (0.0, 1.5), 2))

        def factor(name: str) -> float:
            return 0.0 if "layers.0." in name else 1.5 if "layers.1." in name else 1.0

        out = write(*pair, alpha, tmp_path / "out")
        assert same_bits(out, offline_checkpoint(*pair, 0.7, tmp_path / "offline", factor))
        first = {name: t for name, t in read_all(out).items() if "layers.0." in name}
        aligned = read_all(pair[0])
        assert all(torch.equal(t, aligned[name]) for name, t in first.items())  # at alpha = 0: copies

    def test_an_sft_in_float32_is_widened_not_rounded(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "pair", "qwen2", sft_dtype=torch.float32)
        out = write(*pair, 0.7, tmp_path / "out")
        assert same_bits(out, offline_checkpoint(*pair, 0.7, tmp_path / "offline"))

    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize(
        ("aligned", "sft"),
        [(torch.float16, torch.float16), (torch.float32, torch.float32), (torch.float16, torch.float32)],
    )
    def test_sources_of_other_dtypes_are_the_formulas_too(
        self,
        aligned: torch.dtype,
        sft: torch.dtype,
        compiled: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        pair = make_pair(tmp_path / "pair", "llama-tied")
        edit(pair[0], lambda _, t: t.to(aligned))
        edit(pair[1], lambda _, t: t.to(sft))
        if not compiled:
            monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        out = write(*pair, 0.7, tmp_path / "out")
        a, s, theta = (read_all(folder) for folder in (*pair, out))
        for name, tensor in theta.items():
            wide = a[name].float()
            assert torch.equal(tensor, ((wide - s[name].float()) * 0.7 + wide).to(aligned))

    def test_shards_hold_the_same_tensors_with_an_index(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        whole = write(*pair, 0.7, tmp_path / "whole")
        sharded = write(*pair, 0.7, tmp_path / "sharded", Format(max_shard_bytes=200_000))
        assert len(list(sharded.glob("model-*.safetensors"))) > 2
        assert same_bits(whole, sharded)
        assert open_checkpoint(sharded, role="aligned").tensors.keys() == read_all(whole).keys()

    @pytest.mark.parametrize("compiled", [True, False])
    def test_vocabulary_rows_that_sft_lacks_are_aligneds(
        self, pair: tuple[Path, Path], compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        aligned, sft = pair
        if not compiled:
            monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        shorter = shrink_vocabulary(sft, tmp_path / "shorter", by=5)
        padded = pad_vocabulary_with(aligned, shorter, tmp_path / "padded")
        out = write(aligned, shorter, 0.7, tmp_path / "out")
        assert same_bits(out, offline_checkpoint(aligned, padded, 0.7, tmp_path / "offline"))

    @pytest.mark.parametrize("compiled", [True, False])
    def test_a_tensor_larger_than_a_piece_is_whole(
        self, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Five million elements and one more, in pieces of at most four (the kernel's) or a quarter (torch's)."""
        n = 5 * (1 << 20) + 1
        make_flat_pair(tmp_path, n)
        if not compiled:
            monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        seen: list[int] = []
        out = write(tmp_path / "aligned", tmp_path / "sft", 0.7, tmp_path / "out", on_bytes=seen.append)
        a, s, theta = (read_all(folder) for folder in (tmp_path / "aligned", tmp_path / "sft", out))
        wide = a["weight"].float()
        assert torch.equal(theta["weight"], ((wide - s["weight"].float()) * 0.7 + wide).bfloat16())
        assert theta["step"].tolist() == [7]
        assert sum(seen) == 2 * n + 8

    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize("role", ["aligned", "sft"])
    def test_a_source_that_is_cut_off_meanwhile_is_named(
        self, role: str, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_flat_pair(tmp_path, 1001)
        aligned, sft = (open_checkpoint(tmp_path / name, role="sft") for name in ("aligned", "sft"))
        file = tmp_path / role / "model.safetensors"
        os.truncate(file, file.stat().st_size - 1)
        if not compiled:
            monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        with refused(f"{file}: an end of file inside a tensor", CheckpointError):
            export(aligned, sft, 0.7, tmp_path / "out", Format())
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("family", ["llama-tied", "gemma2", "mixtral"])
    def test_other_layouts_are_the_formulas_too(self, family: str, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "pair", family, shard="300KB")
        out = write(*pair, -0.4, tmp_path / "out")
        assert same_bits(out, offline_checkpoint(*pair, -0.4, tmp_path / "offline"))

    def test_a_dtype_is_rounded_to_once_and_named_in_the_config(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        out = write(*pair, 0.7, tmp_path / "out", Format(dtype="float32"))
        a, s, theta = (read_all(folder) for folder in (*pair, out))
        for name, tensor in theta.items():
            wide = a[name].float()
            assert torch.equal(tensor, (wide - s[name].float()) * 0.7 + wide)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.dtype == torch.float32
        assert AutoTokenizer.from_pretrained(out).chat_template

    def test_a_weight_too_large_for_its_dtype_is_named_and_nothing_is_left(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "pair", "llama-untied")
        edit(pair[0], lambda name, t: t.fill_(1e5) if name == "model.norm.weight" else t)
        with refused("too large for float16", CheckpointError):
            write(*pair, 0.7, tmp_path / "out", Format(dtype="float16"))
        with refused("tensor .* at alpha 1e\\+38: a number too large for bfloat16", CheckpointError):
            write(*pair, 1e38, tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == ["pair"]

    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize("role", ["aligned", "sft"])
    @pytest.mark.parametrize("number", [float("nan"), float("-inf")])
    def test_a_source_that_is_not_finite_is_named(
        self, role: str, number: float, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_flat_pair(tmp_path, 1001)
        edit(tmp_path / role, lambda name, t: t.index_fill(0, torch.tensor([7]), number) if name == "weight" else t)
        if not compiled:
            monkeypatch.setattr("expo_search.weights.cpu_kernel.load_kernel", lambda: None)
        found = f"tensor weight of {tmp_path / role}/model.safetensors: numbers that are not finite"
        with refused(found, CheckpointError):
            write(tmp_path / "aligned", tmp_path / "sft", 0.7, tmp_path / "out")


class TestBeside:
    def test_pythons_files_are_copied_only_when_allowed_and_other_weights_never(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "pair", "llama-untied")
        for name in ("modeling.py", "pytorch_model.bin", "README.md", ".hidden", "LICENSE", "adapter_config.json"):
            (pair[0] / name).write_text("x")
        plain = write(*pair, 0.7, tmp_path / "plain")
        assert {"LICENSE", "config.json", "tokenizer.json", "generation_config.json"} <= {
            p.name for p in plain.iterdir()
        }
        assert not {"modeling.py", "pytorch_model.bin", "README.md", ".hidden", "adapter_config.json"} & {
            p.name for p in plain.iterdir()
        }
        assert (write(*pair, 0.7, tmp_path / "code", Format(code=True)) / "modeling.py").is_file()

    def test_a_config_names_no_code_that_is_not_there(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "pair", "llama-untied")
        for name in ("config.json", "tokenizer_config.json"):
            config = json.loads((pair[0] / name).read_text())
            (pair[0] / name).write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.Config"}}))
        (pair[0] / "own.py").write_text("")
        without, with_code = (write(*pair, 0.7, tmp_path / f"{c}", Format(code=c)) for c in (False, True))
        assert "auto_map" not in (without / "config.json").read_text() + (without / "tokenizer_config.json").read_text()
        assert "auto_map" in (with_code / "config.json").read_text()

    @pytest.mark.parametrize(
        ("generation", "config", "given", "expected"),
        [
            ({"eos_token_id": 2, "top_p": 0.9}, {}, [2], {"eos_token_id": 2, "top_p": 0.9}),
            ({"eos_token_id": 2}, {}, [92542], {"eos_token_id": [2, 92542]}),
            ({"eos_token_id": [2, 5]}, {}, [5, 7], {"eos_token_id": [2, 5, 7]}),
            ({"top_p": 0.9}, {"eos_token_id": 2}, [7], {"top_p": 0.9, "eos_token_id": 7}),
            (None, {"eos_token_id": 2, "bos_token_id": 1}, [7], {"eos_token_id": [2, 7], "bos_token_id": 1}),
            (None, {"eos_token_id": 2}, [], None),
        ],
    )
    def test_the_generation_config_names_every_token_that_ends_an_answer(
        self, tmp_path: Path, generation: Any, config: Any, given: list[int], expected: Any
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        file = tmp_path / "generation_config.json"
        if generation is not None:
            file.write_text(json.dumps(generation))
        set_stops(tmp_path, given)
        assert (json.loads(file.read_text()) if file.exists() else None) == expected

    def test_a_template_from_the_study_file_is_the_one_that_transformers_reads(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = write(*pair, 0.7, tmp_path / "out")
        set_chat_template(out, "{{ 'mine' }}")
        assert AutoTokenizer.from_pretrained(out).chat_template == "{{ 'mine' }}"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class TestTarget:
    def test_an_existing_folder_is_kept_unless_forced(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        out = write(*pair, 0.0, tmp_path / "out", finish=named)
        with refused("exists already"):
            write(*pair, 0.7, out)
        assert same_bits(out, pair[0])
        write(*pair, 0.7, out, force=True)
        assert same_bits(out, offline_checkpoint(*pair, 0.7, tmp_path / "offline"))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["offline", "out"]

    def test_force_replaces_no_folder_that_holds_something_else(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.txt").write_text("keep")
        with refused("something else than an exported folder"):
            write(*pair, 0.7, out, force=True)
        assert (out / "thesis.txt").read_text() == "keep"
        (tmp_path / "link").symlink_to(out)
        with refused("something else than an exported folder"):
            write(*pair, 0.7, tmp_path / "link", force=True)

    def test_force_replaces_no_model_that_was_not_exported(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        """It has an export's file names: somebody's own fine-tuned model."""
        own = write(*pair, 0.0, tmp_path / "own")
        with refused("something else than an exported folder, which --force does not replace"):
            write(*pair, 0.7, own, force=True)
        assert same_bits(own, pair[0])
        named(own)
        write(*pair, 0.7, own, force=True)

    @pytest.mark.parametrize(
        "file", ["checkpoint-500/config.json", "optimizer.pt", "trainer_state.json", "model-new.safetensors"]
    )
    def test_force_replaces_no_folder_of_a_training_run(
        self, pair: tuple[Path, Path], tmp_path: Path, file: str
    ) -> None:
        out = write(*pair, 0.0, tmp_path / "out", finish=named)
        (out / file).parent.mkdir(exist_ok=True)
        (out / file).write_text("{}")
        with refused("something else than an exported folder, which --force does not replace"):
            write(*pair, 0.7, out, force=True)
        assert (out / file).is_file()

    def test_force_replaces_what_an_export_wrote_whatever_its_sources_brought(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = write(*pair, 0.0, tmp_path / "out")
        for name in ("USE_POLICY.md", "modeling_own.py"):
            (out / name).write_text("{}")
        (out / "expo.json").write_text(json.dumps({"files": ["USE_POLICY.md", "modeling_own.py"]}))
        (out / "notes.txt").write_text("mine")
        with refused("something else than an exported folder"):
            write(*pair, 0.7, out, force=True)
        assert (out / "notes.txt").read_text() == "mine"
        (out / "notes.txt").unlink()
        write(*pair, 0.7, out, force=True)
        assert same_bits(out, offline_checkpoint(*pair, 0.7, tmp_path / "offline"))
        assert not (out / "USE_POLICY.md").exists()

    def test_a_source_is_never_the_target(self, tmp_path: Path) -> None:
        pair = make_pair(tmp_path / "pair", "llama-untied")
        (tmp_path / "link").symlink_to(pair[1])
        for out in (*pair, tmp_path / "pair", tmp_path / "link"):
            with refused("a source checkpoint, or a folder above it"):
                write(*pair, 0.7, out, force=True)
        assert read_all(pair[0])

    def test_too_little_room_is_said_before_writing(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
        with refused(r"0.0 GB free on its disk; expected 0.1 GB"):
            write(*pair, 0.7, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_a_read_only_parent_and_a_file_as_parent_are_refused(
        self, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        with refused("is a file"):
            write(*pair, 0.7, tmp_path / "file" / "out")
        monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        with refused("is read-only"):
            write(*pair, 0.7, tmp_path / "out")

    @pytest.mark.parametrize("kept", [False, True])
    def test_parents_that_were_made_go_again_but_not_what_is_in_them(self, kept: bool, tmp_path: Path) -> None:
        def fails() -> None:
            with published(tmp_path / "a" / "x" / ".." / "b" / "out"):
                if kept:
                    (tmp_path / "a" / "mine").touch()
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fails()
        assert sorted(p.name for p in tmp_path.rglob("*")) == (["a", "mine"] if kept else [])
        out = tmp_path / "a" / "x" / ".." / "b" / "out"
        with published(out):
            pass
        assert out.is_dir()

    def test_a_disk_that_is_full_after_all_is_one_line_and_leaves_nothing(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # the tokenizer fits, the weights do not
        try:
            with refused("File too large; expected a folder that can be written to"):
                write(*pair, 0.7, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(tmp_path.iterdir())

    def test_more_shards_than_files_may_be_open_ask_for_larger_ones(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        gc.collect()  # files that tests before this one left open
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        is_open = {int(p.name) for p in Path("/proc/self/fd").iterdir()}
        fifth_free = [number for number in range(len(is_open) + 5) if number not in is_open][4]
        resource.setrlimit(resource.RLIMIT_NOFILE, (fifth_free + 1, limits[1]))
        try:
            with refused("Too many open files.*give a larger --max-shard-size"):
                write(*pair, 0.7, tmp_path / "out", Format(max_shard_bytes=1000))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert not list(tmp_path.iterdir())


class TestWholeOrNothing:
    def test_a_fault_at_the_end_leaves_nothing_and_the_old_folder_whole(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        old = write(*pair, 0.0, tmp_path / "out", finish=named)

        def fails(folder: Path) -> None:
            assert old.is_dir(), "the old one stays while the new one is written"
            assert read_all(folder)
            raise OSError("No space left on device")

        with refused("No space left on device; expected"):
            write(*pair, 0.7, old, force=True, finish=fails)
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        assert same_bits(old, pair[0])

    def test_ctrl_c_stops_at_the_next_piece_and_leaves_nothing(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        def stop(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write(*pair, 0.7, tmp_path / "out", on_bytes=stop)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_came_into_being_meanwhile_is_kept(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "out"

        def other_process(_: Path) -> None:
            out.mkdir()
            (out / "theirs").touch()

        with refused("in the meantime"):
            write(*pair, 0.7, out, finish=other_process)
        assert [p.name for p in out.iterdir()] == ["theirs"]
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def test_what_a_killed_export_left_is_cleared_by_the_next_but_not_a_live_ones(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        killed = killed_export(pair, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert [p.name for p in tmp_path.iterdir()] == [f".out.partial-{socket.gethostname()}-{killed}"]
        live = tmp_path / f".out.partial-{socket.gethostname()}-{os.getppid()}"
        elsewhere = tmp_path / ".out.partial-another-host-1"
        live.mkdir()
        elsewhere.mkdir()
        write(*pair, 0.7, tmp_path / "out")
        assert {p.name for p in tmp_path.iterdir()} == {"out", live.name, elsewhere.name}

    def test_an_old_folder_whose_place_was_taken_by_none_comes_back(self, tmp_path: Path) -> None:
        """As after a kill between the two renames."""
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        old = tmp_path / f".out.old-{socket.gethostname()}-{process.pid}"
        old.mkdir()
        (old / "config.json").touch()
        with pytest.raises(FileExistsError), published(tmp_path / "out"):
            pass
        assert (tmp_path / "out" / "config.json").is_file()
        assert [p.name for p in tmp_path.iterdir()] == ["out"]


def killed_export(pair: tuple[Path, Path], out: Path) -> int:
    """Kill -9 an export when its weights are written; its process id."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from expo_search.checkpoint.folder import open_checkpoint\n"
        "from expo_search.exporting.checkpoint import Format, export\n"
        "a, s = (open_checkpoint(Path(p), role=p) for p in sys.argv[1:3])\n"
        "export(a, s, 0.7, Path(sys.argv[3]), Format(), finish=lambda _: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, pair), str(out)])
    assert process.wait(60) == -signal.SIGKILL
    return process.pid
