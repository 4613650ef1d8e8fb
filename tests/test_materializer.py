"""The switch in the real engine: exact against the offline formula and a fresh engine on an offline checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from twins import (
    SMALL,
    VOCAB,
    drop,
    edit,
    families,
    make_pair,
    offline_checkpoint,
    pad_vocabulary_with,
    read_all,
    shrink_vocabulary,
)

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.pair_check import check_pair
from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.dtypes import has_instructions
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.engine.worker import loader, materializer, vllm_names
from expo_search.engine.worker.loader import Weight
from expo_search.engine.worker.materializer import LiveWeights
from expo_search.engine.worker.source_pieces import PieceReader
from expo_search.errors import CheckpointError, MaterializeError
from expo_search.weights.formula import plain_theta
from expo_search.weights.shape import Shape, ShapedAlpha

ENGINE = EngineSpec(max_model_len=256, max_num_seqs=8, kv_cache_gib=1)
TEXT = "Name three rivers, then say why the second one is the longest of them all."
FAMILIES = [*families(), "internlm2"]
CASES = [
    *((family, torch.bfloat16) for family in FAMILIES),
    *(("qwen2", torch.float32), ("mixtral", torch.float16), ("deepseek-v2", torch.float32)),
]
# one for each weight, by two rules in turn: every family's fused names must have the factor of the file's names
DEPTH, MODULES = Shape("depth", (0.8, 0.6), 2), Shape("attn-mlp", (1.5, 0.25), 2)


def factor_of(shape: Shape) -> Callable[[str], float]:
    """The factor of a weight of a twin, by its name in the file: written apart from the package."""

    def factor(name: str) -> float:
        layer = re.search(r"layers\.(\d)\.([^.]+)", name)
        if layer is None:
            return 1.0
        if shape is DEPTH:
            return 0.8 * (1 + 0.6 * (2 * int(layer[1]) - 1))
        if "norm" in layer[2]:
            return 1.0
        return {"att": 1.5, "sel": 1.5, "mlp": 0.25, "fee": 0.25, "blo": 0.25}.get(layer[2][:3], 1.0)

    return factor


def engine(aligned: Path, sft: Path, **settings: Any) -> VllmModel:
    remote = (aligned / "configuration_internlm2.py").exists()
    table = ENGINE.model_copy(update=settings)
    return VllmModel(ModelSpec(aligned, sft, SamplingSpec(max_tokens=16), table, 0, trust_remote_code=remote))


def answer(model: VllmModel) -> list[tuple[int, float]]:
    """Greedy tokens with their log-probabilities."""
    return model.log_probabilities(TEXT, 12, salt="uncached")


@pytest.mark.parametrize(("family", "sft_dtype"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_a_switched_engine_is_to_the_bit_a_fresh_engine_on_the_offline_checkpoint(
    family: str, sft_dtype: torch.dtype, tmp_path: Path
) -> None:
    """An sft of a wider or other dtype than aligned's bfloat16, which would round part of it away, too."""
    is_wider = sft_dtype != torch.bfloat16
    aligned, sft = make_pair(tmp_path, family, sft_dtype=sft_dtype, delta=0.01 if is_wider else 0.05)
    assert is_wider == any((t != t.bfloat16()).any() for t in read_all(sft).values())
    live = engine(aligned, sft)
    seen: dict[float, tuple[str, Any]] = {}
    shape = MODULES if CASES.index((family, sft_dtype)) % 2 else DEPTH
    one, each = 0.7, ShapedAlpha(-0.4, shape)
    for alpha in (one, each, 0.0, one):  # A -> B -> 0 -> A
        switch = live.materialize(alpha)
        now = (switch.fingerprint, answer(live))
        assert seen.setdefault(alpha, now) == now
    assert seen[0.0][0] == live.sources.aligned
    assert len({str(tokens) for _, tokens in seen.values()}) == 3, "the twin's answers do not change with alpha"
    live.close()
    offline = (
        offline_checkpoint(aligned, sft, one, tmp_path / "one"),
        offline_checkpoint(aligned, sft, each, tmp_path / "each", factor_of(shape)),
    )
    fresh = engine(*offline)  # vLLM's own loader takes both: the first as its model, the other as its sft
    assert (fresh.sources.aligned, answer(fresh)) == seen[one]
    assert fresh.sources.sft == seen[each][0]
    fresh.close()


@pytest.mark.parametrize(
    "family", ["llama-tied", "deepseek-v2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gemma3", "mixtral"))]
)
def test_the_weights_are_the_same_bits_whatever_they_are_multiplied_in(family: str, tmp_path: Path) -> None:
    """The arithmetic that this machine would not choose; also of weights that an engine always keeps in float32."""
    aligned, sft = make_pair(tmp_path, family)
    chosen = engine(aligned, sft)
    expected, sources, answered = chosen.materialize(0.7).fingerprint, chosen.sources, answer(chosen)
    chosen.close()
    other = engine(aligned, sft, arithmetic="float32" if has_instructions("bfloat16") else "bfloat16")
    assert other.materialize(0.7).fingerprint == expected
    assert other.sources == sources
    assert answer(other) != answered  # the same numbers, multiplied in another way
    other.close()


def test_shards_need_not_line_up(tmp_path: Path) -> None:
    aligned, _ = make_pair(tmp_path / "one", "llama-untied", shard="200KB")
    _, sft = make_pair(tmp_path / "other", "llama-untied", shard="130KB")
    shards = [open_checkpoint(folder, role=folder.name).tensors for folder in (aligned, sft)]
    together = [{(a, b) for a in of for b in of if of[a].file.name == of[b].file.name} for of in shards]
    assert together[0] - together[1]  # tensors that only aligned keeps in one file
    assert together[1] - together[0]  # ... and only sft
    live = engine(aligned, sft)
    switched = (live.materialize(0.7).fingerprint, answer(live))
    live.close()
    fresh = engine(offline_checkpoint(aligned, sft, 0.7, tmp_path / "offline"), sft)
    assert (fresh.sources.aligned, answer(fresh)) == switched
    fresh.close()


def test_a_file_beside_model_safetensors_that_no_index_names_is_not_loaded(tmp_path: Path) -> None:
    aligned, sft = make_pair(tmp_path, "llama-tied")
    for name in ("a.safetensors", "z.safetensors"):  # as whatever the folder is read: before it, and after it
        shutil.copy(sft / "model.safetensors", aligned / name)
    live = engine(aligned, sft)  # which refuses two that hold the same weights
    live.close()


def test_vllms_reload_from_a_folder_that_nobody_checked_loads_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object) -> tuple[str, list[str], bool, str]:
        return "", ["aligned/model.safetensors", "aligned/left-over.safetensors", "new/model.safetensors"], True, ""

    monkeypatch.setattr(vllm_names.DefaultModelLoader, "_prepare_weights", prepare)
    expo = object.__new__(loader.ExpoLoader)
    expo._files = {Path("aligned/model.safetensors")}
    assert expo._prepare_weights()[1] == ["aligned/model.safetensors", "new/model.safetensors"]


@pytest.mark.parametrize("is_tied", [False, True])
def test_rows_of_the_vocabulary_that_sft_lacks_stay_the_aligned_ones(is_tied: bool, tmp_path: Path) -> None:
    """Of each of aligned's two vocabulary matrices its own rows, also where sft has one matrix for both."""
    aligned, sft = make_pair(tmp_path, "llama-untied")
    shorter = shrink_vocabulary(sft, tmp_path / "shorter", by=5)
    if is_tied:
        edit(shorter, lambda name, t: read_all(shorter)["model.embed_tokens.weight"] if name == "lm_head.weight" else t)
    padded = pad_vocabulary_with(aligned, shorter, tmp_path / "padded")
    if is_tied:
        drop(shorter, "lm_head.weight")
        config = json.loads((shorter / "config.json").read_text())
        (shorter / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    live = engine(aligned, shorter)
    switch = live.materialize(0.7)
    live.close()
    fresh = engine(offline_checkpoint(aligned, padded, 0.7, tmp_path / "offline"), sft)
    assert fresh.sources.aligned == switch.fingerprint
    fresh.close()


def test_rows_of_the_vocabulary_that_aligned_lacks_are_left_out(tmp_path: Path) -> None:
    longer, sft = make_pair(tmp_path, "mistral")
    aligned, cut = (shrink_vocabulary(folder, tmp_path / f"short-{folder.name}", by=5) for folder in (longer, sft))
    live = engine(aligned, sft)
    switched = (live.materialize(0.7).fingerprint, answer(live))
    live.close()
    fresh = engine(offline_checkpoint(aligned, cut, 0.7, tmp_path / "offline"), cut)
    assert (fresh.sources.aligned, answer(fresh)) == switched
    fresh.close()


def test_tensors_of_other_shapes_are_counted_and_the_first_named_before_an_engine_starts(tmp_path: Path) -> None:
    aligned, _ = make_pair(tmp_path / "one", "llama-tied")
    sft, _ = make_pair(tmp_path / "other", "llama-biased")
    named = r"\d+ tensors that do not match \(.*self_attn\.k_proj\.bias: only in sft; .*\.\.\.\)"
    with pytest.raises(CheckpointError, match=named):
        check_pair(open_checkpoint(aligned, role="aligned"), open_checkpoint(sft, role="sft"))


@pytest.mark.parametrize(("role", "number"), [("sft", float("inf")), ("aligned", float("nan"))])
def test_a_source_that_is_not_finite_is_refused_by_name(role: str, number: float, tmp_path: Path) -> None:
    pair = dict(zip(("aligned", "sft"), make_pair(tmp_path, "llama-tied"), strict=True))
    fused = "model.layers.1.self_attn.k_proj.weight"  # vLLM has q, k and v in one

    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == fused:
            tensor[3, 5] = number
        return tensor

    edit(pair[role], spoil)
    named = rf"{role} checkpoint, tensor {fused} of .*/{role}/model.safetensors: numbers that are not finite"
    with pytest.raises(MaterializeError, match=named):
        engine(**pair)


def test_a_part_of_a_weight_that_no_load_wrote_is_an_error_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = loader._sft_tensors
    half = "model.layers.1.mlp.up_proj.weight"  # vLLM has it in one with the gate

    def leaves_out(*args: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return (pair for pair in given(*args) if pair[0] != half)

    monkeypatch.setattr(loader, "_sft_tensors", leaves_out)
    unwritten = r"sft checkpoint, weight model.layers.1.mlp.gate_up_proj.weight: 32768 of 65536 elements not written"
    with pytest.raises(MaterializeError, match=unwritten):
        engine(*make_pair(tmp_path, "llama-untied"))


def test_padding_that_vllm_adds_to_experts_is_no_missing_weight_and_the_same_at_every_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM pads them for the kernels of a Blackwell GPU."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    aligned, sft = make_pair(tmp_path, "qwen3-moe")  # experts of 64
    plain = engine(aligned, sft)
    expected = plain.materialize(0.7), answer(plain)
    plain.close()
    monkeypatch.setattr(
        UnquantizedFusedMoEMethod, "maybe_roundup_sizes", lambda _, hidden, inner, *__: (hidden, -(-inner // 128) * 128)
    )
    live = engine(aligned, sft)
    switched = live.materialize(0.7).fingerprint
    assert [token for token, _ in answer(live)] == [token for token, _ in expected[1]]
    live.materialize(-0.4)
    assert live.materialize(0.7).fingerprint == switched != expected[0].fingerprint  # other shapes
    live.close()
    fresh = engine(offline_checkpoint(aligned, sft, 0.7, tmp_path / "offline"), sft)
    assert fresh.sources.aligned == switched
    fresh.close()


def test_a_weight_that_vllm_computes_while_loading_is_refused_if_the_pair_differs_in_it(tmp_path: Path) -> None:
    """Mamba's A: vLLM keeps -exp(A_log)."""
    aligned, sft = make_pair(tmp_path, "mamba2")
    with pytest.raises(
        MaterializeError, match=r"weight backbone.layers.0.mixer.A of Mamba2ForCausalLM: aligned and sft"
    ):
        engine(aligned, sft)
    common = {name: t for name, t in read_all(aligned).items() if name.endswith("A_log")}
    edit(sft, lambda name, t: common.get(name, t))
    live = engine(aligned, sft)
    switched = (live.materialize(0.7).fingerprint, answer(live))
    live.close()
    fresh = engine(offline_checkpoint(aligned, sft, 0.7, tmp_path / "offline"), sft)
    assert (fresh.sources.aligned, answer(fresh)) == switched
    fresh.close()


def test_an_alpha_at_which_a_weight_overflows_is_refused_and_leaves_the_engine_as_it_was(tmp_path: Path) -> None:
    aligned, sft = make_pair(tmp_path, "llama-tied")
    live = engine(aligned, sft)
    before = (live.materialize(0.7).fingerprint, answer(live))
    with pytest.raises(MaterializeError, match=r"alpha 1e\+40: weight model.embed_tokens.weight overflows"):
        live.materialize(1e40)
    assert answer(live) == before[1]
    assert live.materialize(0.7).fingerprint == before[0]
    live.close()


def test_two_equal_checkpoints_are_no_pair(tmp_path: Path) -> None:
    aligned, _ = make_pair(tmp_path, "llama-tied")
    with pytest.raises(MaterializeError, match="aligned and sft hold the same weights"):
        engine(aligned, aligned)


def test_without_a_compiler_and_with_streamed_sources_an_engine_gets_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned, sft = make_pair(tmp_path, "llama-tied")
    live = engine(aligned, sft)
    expected = (live.materialize(0.7).fingerprint, answer(live))
    live.close()
    monkeypatch.setattr(materializer, "load_kernel", lambda: None)
    several = 1 << 15  # elements: each matrix in more than one piece
    monkeypatch.setattr(materializer, "PieceReader", lambda on, **_: PieceReader(on, stage=True, piece=several))
    streamed = engine(aligned, sft)
    assert (streamed.materialize(0.7).fingerprint, answer(streamed)) == expected
    streamed.materialize(0.0)
    in_pieces, skipped = LiveWeights._in_pieces, list[Weight]()

    def skips_one(self: LiveWeights, out: torch.Tensor, weight: Weight, *rest: Any) -> torch.Tensor:
        if not skipped and out.numel() == SMALL["hidden_size"]:
            skipped.append(weight)
        return in_pieces(self, torch.empty_like(out) if weight in skipped else out, weight, *rest)

    monkeypatch.setattr(LiveWeights, "_in_pieces", skips_one)
    with pytest.raises(MaterializeError, match="canary"):
        streamed._check()
    assert skipped
    streamed.close()


def _kind(weight: Weight) -> str:
    if len(weight.shape) == 1:
        return "norm"
    return "vocabulary" if weight.shape[0] == VOCAB else "matrix"


class TestCanary:
    """Every known corruption of a switch is caught before a trial runs."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[Path, Path]:
        return make_pair(tmp_path, "llama-untied")

    @pytest.fixture(scope="class", params=["auto", "float32"])
    def started(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmModel]:
        """In what this machine multiplies in, and widened, as machines without bfloat16 instructions do."""
        folder = tmp_path_factory.mktemp("canary")
        live = engine(*make_pair(folder, "llama-tied"), arithmetic=request.param)
        yield live
        live.close()

    @pytest.fixture
    def live(self, started: VllmModel) -> VllmModel:
        """An engine that stands at alpha = 0 as just started, whatever a test before corrupted."""
        started.materialize(0.0)
        started._check()
        return started

    @pytest.mark.parametrize("kind", ["norm", "matrix", "vocabulary"])
    def test_one_weight_that_is_not_written(self, kind: str, live: VllmModel, monkeypatch: pytest.MonkeyPatch) -> None:
        """The fingerprint as written is the right one: what was written went elsewhere than the engine reads."""
        into, forgotten = LiveWeights._into, list[Weight]()

        def forgets(self: LiveWeights, out: torch.Tensor, weight: Weight, *rest: Any) -> Any:
            if not forgotten and _kind(weight) == kind:
                forgotten.append(weight)
            return into(self, torch.empty_like(out) if weight in forgotten else out, weight, *rest)

        monkeypatch.setattr(LiveWeights, "_into", forgets)
        with pytest.raises(MaterializeError, match="canary"):
            live._check()
        assert forgotten

    def test_a_weight_that_is_moved_twice(self, live: VllmModel, monkeypatch: pytest.MonkeyPatch) -> None:
        into = LiveWeights._into

        def twice(self: LiveWeights, out: torch.Tensor, weight: Weight, alpha: float, pieces: Any) -> Any:
            total = into(self, out, weight, alpha, pieces)
            if _kind(weight) == "norm":
                out.add_(alpha * (weight.aligned - weight.sft))
            return total

        monkeypatch.setattr(LiveWeights, "_into", twice)
        with pytest.raises(MaterializeError, match="canary"):
            live._check()

    def test_weights_that_are_not_rounded(self, live: VllmModel, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the engine holds them in float32: theta(alpha) itself, which no export in bfloat16 could hold."""
        into = LiveWeights._into

        def unrounded(self: LiveWeights, out: torch.Tensor, weight: Weight, alpha: float, pieces: Any) -> Any:
            total = into(self, out, weight, alpha, pieces)
            if alpha:
                out.copy_(plain_theta(weight.aligned, weight.sft, alpha) * (1 if out.dtype != weight.dtype else 1.01))
            return total

        monkeypatch.setattr(LiveWeights, "_into", unrounded)
        with pytest.raises(MaterializeError, match=r"canary.*other weights than the formula's"):
            live._check()

    def test_prefixes_that_are_not_forgotten(self, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(VllmModel, "_forget_prefixes", lambda _: None)
        with pytest.raises(MaterializeError, match="a prefix that was cached at another alpha"):
            engine(*pair)

    def test_packed_weights_that_are_not_derived_again(
        self, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("expo_search.engine.worker.materializer._derive_again", lambda *_: None)
        with pytest.raises(MaterializeError, match="canary"):
            engine(*pair)

    def test_one_layer_that_is_not_derived_again(
        self, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        derived = materializer._derive_again

        def skips_one(module: torch.nn.Module, own: list[Weight]) -> None:
            if not any("layers.1.mlp.down_proj" in w.name for w in own):
                derived(module, own)

        monkeypatch.setattr(materializer, "_derive_again", skips_one)
        with pytest.raises(MaterializeError, match="canary"):
            engine(*pair)


def test_vllms_own_weight_checker_finds_the_weights_of_an_offline_checkpoint_that_plain_vllm_loaded(
    tmp_path: Path,
) -> None:
    """A witness that shares no code with ours. Of a CPU engine it sees what is not packed: embeddings and norms."""
    from vllm import LLM

    aligned, sft = make_pair(tmp_path, "llama-tied")
    live = engine(aligned, sft)
    switched = {}
    for alpha in (0.0, 0.7):
        live.materialize(alpha)
        [switched[alpha]] = live._engine.call("compute_weight_checksums")
    live.close()
    plain = LLM(
        model=str(offline_checkpoint(aligned, sft, 0.7, tmp_path / "offline")),
        dtype="bfloat16" if has_instructions("bfloat16") else "float32",
        max_model_len=256, enforce_eager=True, max_num_seqs=8,
    )  # fmt: skip
    [expected] = plain.collective_rpc("compute_weight_checksums")
    plain.llm_engine.engine_core.shutdown()
    assert switched[0.7] == expected
    moved = {name for name in expected if switched[0.0][name] != expected[name]}
    assert {name.split(".")[-2] for name in moved} >= {"embed_tokens", "input_layernorm", "norm"}


@pytest.mark.slow  # two engines of three processes each, which all import vLLM
def test_two_tensor_parallel_ranks_switch_as_a_fresh_engine_loads(tmp_path: Path) -> None:
    aligned, sft = make_pair(tmp_path, "llama-untied")
    two = ENGINE.model_copy(update={"tensor_parallel": 2})

    def start(folder: Path) -> VllmModel:
        return VllmModel(ModelSpec(folder, sft, SamplingSpec(max_tokens=16), two, 0))

    live = start(aligned)
    switch, answered = live.materialize(0.7), answer(live)
    assert len(set(switch.fingerprint.split("-"))) == 2  # each rank has shards of its own
    live.close()
    fresh = start(offline_checkpoint(aligned, sft, 0.7, tmp_path / "offline"))
    assert (fresh.sources.aligned, answer(fresh)) == (switch.fingerprint, answered)
    fresh.close()
