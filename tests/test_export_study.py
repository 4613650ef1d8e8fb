"""From a study's database to an exported model: what is chosen, what is refused, what lies beside the weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import optuna
import pytest
import torch
from fakes import make_evaluation
from safetensors.torch import load_file
from test_build import write_lora
from transformers import AutoTokenizer
from twins import edit, make_pair, make_reward_model, offline_checkpoint, read_all

from expo_search.checkpoint import build as assemble
from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.lora import open_adapter
from expo_search.cli.export import size_in_bytes, uses_of
from expo_search.config.presets import load_study
from expo_search.config.spec import PairSpec, stored_spec
from expo_search.contracts import Completion, Prompt
from expo_search.engine.machine import Machine
from expo_search.engine.start import ModelSpec
from expo_search.errors import EngineError, SettingsChanged, StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.exporting.hub_upload import check_push, push
from expo_search.exporting.provenance import read_provenance
from expo_search.exporting.study import export_study
from expo_search.exporting.verify import engine_dtype
from expo_search.exporting.wanted import Wanted
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.source import Pair
from expo_search.search.loop import evaluations
from expo_search.search.shape_search import begin
from expo_search.search.shapes import Beginning
from expo_search.session.running import note_contents
from expo_search.session.settings import sources_settings
from expo_search.store.attributes import StudyAttributes
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store

GIB = 2**30
TRIALS = [(0.0, 0.0), (0.5, 0.4), (1.0, 0.9), (2.0, -3.0)]  # alpha and its gain


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_pair(folder, "llama-untied")
    make_reward_model(folder / "reward")
    write_lora(folder / "adapter", folder / "aligned")
    return folder


def make_study(
    home: Path, url: str, *, trials: list[Evaluation] | None = None, engine: dict[str, Any] | None = None, **pair: Any
) -> None:
    """A study as a search leaves it, of trials that no engine made."""
    given = {"aligned": str(home / "aligned"), "sft": str(home / "sft"), "reward_model": str(home / "reward")} | pair
    tables = {"pair": given, "prompts": {"source": "p.jsonl", "n": 2}, "engine": engine or {}}
    spec = load_study(overrides=tables, name="mine")
    found = resolve_pair(spec.pair, trust_remote_code=False, say=lambda _: None)
    sources = (open_checkpoint(s.path, role="x") for s in (found.aligned, found.sft))
    store = Store(url, "mine")
    store.pin_settings(
        sources_settings(found, *sources).updated(Settings.from_flat({"prompts.hash": "abc"})),
        spec.model_dump(mode="json"),
    )
    note_contents(store, found)
    put_trials(store, [Prompt("a", "A?"), Prompt("b", "B?")], trials)
    store.close()


def put_trials(store: Store, prompts: Sequence[Prompt], trials: Sequence[Evaluation] | None = None) -> None:
    """Two prompts' answers and rewards, of trials that no engine made."""
    store.put_prompts("search", prompts)
    for e in trials or [make_evaluation(i, alpha, gain, 0.1) for i, (alpha, gain) in enumerate(TRIALS)]:
        store.add_completions(
            e.trial, "search", {i: Completion(p, f"{e.alpha}", 1, "stop") for i, p in enumerate(prompts)}
        )
        store.add_rewards(e.trial, "search", dict.fromkeys(range(2), e.reward.mean))
        store.study.add_trial(
            optuna.trial.create_trial(
                params={"alpha": e.alpha},
                distributions={"alpha": optuna.distributions.FloatDistribution(-10, 100)},
                value=e.gain.mean,
                user_attrs=e.attributes(),
            )
        )


@pytest.fixture
def study(home: Path, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    make_study(home, url)
    return url


def test_a_study_of_relative_paths_is_exported_from_anywhere_and_names_its_sources_in_full(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(home)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    make_study(home, url, aligned="aligned", adapter="adapter", sft=None, reward_model="reward")
    store = Store(url, "mine")
    store.keep(StudyAttributes(folder=str(home)))
    store.close()
    for place in (home, tmp_path):
        monkeypatch.chdir(place)
        export(url, tmp_path / place.name, as_adapter=True)
        config = json.loads((tmp_path / place.name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(home / "aligned")
        export(url, tmp_path / f"{place.name}-whole")
        assert f'"{home / "aligned"}"' in (tmp_path / f"{place.name}-whole" / "mergekit.yaml").read_text()


@pytest.fixture
def adapted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study of a base and its adapter."""
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    url = f"sqlite:///{tmp_path / 'adapted.db'}"
    make_study(home, url, sft=None, adapter=str(home / "adapter"))
    return url


def told_to_verify(url: str, out: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> list[ModelSpec]:
    """The engines that an export with `--verify` asks for on a machine; none is started."""
    asked: list[ModelSpec] = []

    def verified(_: Path, spec: ModelSpec, *__: object) -> str:
        asked.append(spec)
        return "verified"

    monkeypatch.setattr("expo_search.exporting.study.measure_machine", lambda: machine)
    monkeypatch.setattr("expo_search.exporting.study.verify", verified)
    export(url, out, verify=True)
    return asked


def export(url: str, out: Path, **wanted: Any) -> float:
    return export_study(url, "mine", Wanted(out, **wanted), lambda _: None, lambda *_: None)


class TestMemoryOfVerification:
    def test_the_engine_is_planned_as_a_searchs_without_a_reward_model(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [spec] = told_to_verify(study, tmp_path / "out", monkeypatch, Machine(64 * GIB, 79 * GIB, 80 * GIB))
        # 79 GiB less CUDA's context (3/4 GiB) and the scratch of a switch (1/2 GiB), of 80; in whole thousandths
        assert spec.gpu_memory_utilization == 0.971
        assert not spec.sources_on_host

    @pytest.mark.parametrize(("machine", "where"), [
        (Machine(GIB), "memory"),
        (Machine(64 * GIB, GIB, 80 * GIB), "GPU memory"),
    ])  # fmt: skip
    def test_one_that_does_not_fit_is_refused_before_anything_is_written(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine, where: str
    ) -> None:
        monkeypatch.setattr("expo_search.exporting.study.export", lambda *_, **__: pytest.fail("written"))
        with pytest.raises(EngineError, match=rf"^{where}: 1\.0 GiB free; expected memory plan: .*; free memory"):
            told_to_verify(study, tmp_path / "out", monkeypatch, machine)


def add_shapes(url: str, numbers: tuple[float, float], gains: tuple[float, float]) -> None:
    """A search for a shape from trial 2, of one shape, as it leaves it; `gains` on two fresh prompts over uniform."""
    source, store = Store(url, "mine"), Store(url, "mine/depth@2")
    trials = {e.trial: e for e in evaluations(source.study)}
    begin(store, source, Beginning("mine", 2, 1.0, "depth", 2), trials[2], trials[0])
    shape = make_evaluation(2, 1.0, 1.2, 0.1)
    names = ("scale", "slope")
    distributions: dict[str, optuna.distributions.BaseDistribution]
    distributions = {name: optuna.distributions.FloatDistribution(-1, 2) for name in names}
    store.study.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, user_attrs=trials[0].attributes())
    )
    for e, at, value in ((trials[2], (1.0, 0.0), 0.0), (shape, numbers, 0.3)):
        params = dict(zip(names, at, strict=True))
        store.study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=value, user_attrs=e.attributes()
            )
        )
    prompts = store.prompts("search")
    store.add_completions(2, "search", {i: Completion(p, "shaped", 1, "stop") for i, p in enumerate(prompts)})
    store.add_rewards(2, "search", dict.fromkeys(range(2), 2.2))
    store.put_prompts("confirm", prompts)
    for trial, rewards in ((1, (1.0, 1.0)), (2, (1.0 + gains[0], 1.0 + gains[1]))):
        store.add_completions(trial, "confirm", {i: Completion(p, "x", 1, "stop") for i, p in enumerate(prompts)})
        store.add_rewards(trial, "confirm", dict(enumerate(rewards)))
    measured = {"n": 2, "broken": [], "difference": 1.0, "se": 0.1}
    store.keep(StudyAttributes(confirmed={"2": measured}))
    source.close()
    store.close()


class TestShape:
    def test_the_best_one_is_written_with_an_alpha_for_each_weight(
        self, home: Path, study: str, tmp_path: Path
    ) -> None:
        add_shapes(study, (0.5, 1.0), (0.30, 0.31))
        assert float(export(study, tmp_path / "out", shape="depth")) == 1.0

        def factor(name: str) -> float:  # 0.5 (1 + 1 (2 l - 1))
            return 0.0 if "layers.0." in name else 1.0

        offline = read_all(offline_checkpoint(home / "aligned", home / "sft", 1.0, tmp_path / "offline", factor))
        written = read_all(tmp_path / "out")
        assert written.keys() == offline.keys()
        assert all(torch.equal(written[name], offline[name]) for name in offline)
        found = read_provenance(tmp_path / "out")
        assert (found["alpha"], found["trial"]["fingerprint"]) == (1.0, f"{2:032x}")
        assert found["shape"] | {"verdict": ""} == {
            "kind": "depth", "numbers": [0.5, 1.0], "n_layers": 2, "verdict": "",
        }  # fmt: skip
        assert found["commands"]["export"].startswith("expo-search export mine --shape depth --storage")
        assert found["answers"]["trial"]["sha256"] != found["answers"]["control"]["sha256"]
        text = (tmp_path / "out" / "README.md").read_text()
        assert "# ExPO extrapolation, alpha = 1, spread over the layers by depth (scale 0.5, slope 1)" in text
        assert "Better than one alpha for all" in text
        recipe = (tmp_path / "out" / "mergekit.yaml").read_text()
        assert '- filter: "model.layers.0."\n          value: 1.0\n' in recipe
        assert '- filter: "model.layers.1."\n          value: 2.0\n        - value: 2.0\n' in recipe

    def test_one_that_is_not_shown_to_be_better_wants_force(self, study: str, tmp_path: Path) -> None:
        advice = f"search for one: expo-search shape mine --shape depth --confirm N --storage {study}"
        with pytest.raises(StudyError, match=rf"No shape .* was evaluated.*{advice}"):
            export(study, tmp_path / "out", shape="depth")
        add_shapes(study, (0.5, 1.0), (0.9, -0.8))
        with pytest.raises(StudyError, match=r"Uniform alpha = 1 is as good: .*--force to export it all the same"):
            export(study, tmp_path / "out", shape="depth")
        assert not (tmp_path / "out").exists()
        export(study, tmp_path / "out", shape="depth", force=True)
        assert read_provenance(tmp_path / "out")["shape"]["numbers"] == [0.5, 1.0]
        assert " --force " in read_provenance(tmp_path / "out")["commands"]["export"]

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({"shape": "width"}, "--shape: 'width'"),
            ({"shape": "depth", "alpha": 1.0}, "--shape: --alpha beside it"),
            ({"shape": "depth", "as_adapter": True, "force": True}, "--as-adapter: --shape"),
        ],
    )
    def test_what_does_not_go_with_it_is_refused(
        self, study: str, tmp_path: Path, wanted: dict[str, Any], found: str
    ) -> None:
        add_shapes(study, (0.5, 1.0), (0.30, 0.31))
        with pytest.raises(StudyError) as fault:
            export(study, tmp_path / "out", **wanted)
        assert found in str(fault.value)


class TestChoice:
    def test_the_verdicts_alpha_is_the_default(self, study: str, tmp_path: Path) -> None:
        assert export(study, tmp_path / "out") == 1.0
        assert read_provenance(tmp_path / "out")["alpha"] == 1.0

    def test_keep_alpha_zero_asks_for_an_alpha(self, home: Path, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'flat.db'}"
        make_study(home, url, trials=[make_evaluation(0, 0.0, 0.0, 0.1), make_evaluation(1, 0.5, 0.01, 0.1)])
        with pytest.raises(StudyError, match=r"No evidence of a gain.*expected a gain to export; give --alpha"):
            export(url, tmp_path / "out")
        with pytest.raises(StudyError, match=r"give --alpha to export it all the same, without --shape$"):
            export(url, tmp_path / "out", shape="depth")
        assert export(url, tmp_path / "out", alpha=0.5) == 0.5

    def test_an_alpha_that_was_not_evaluated_lists_the_nearest_and_is_exported_by_force(
        self, study: str, tmp_path: Path
    ) -> None:
        with pytest.raises(StudyError, match=r"no finished trial at alpha 0\.7; .* such as 0\.5, 1, 2; .* --force"):
            export(study, tmp_path / "out", alpha=0.7)
        assert not (tmp_path / "out").exists()
        assert export(study, tmp_path / "out", alpha=0.7, force=True) == 0.7
        found = json.loads((tmp_path / "out" / "expo.json").read_text())
        assert (found["evaluated"], found["trial"], found["fingerprints"]["trial"]) == (False, None, None)
        assert "**Not evaluated.**" in (tmp_path / "out" / "README.md").read_text()
        assert found["commands"]["export"] == (
            f"expo-search export mine --alpha 0.7 --force --storage {study} --out DIR"
        )
        assert "expo.json" in found["files"]
        assert set(found["files"]) == {file.name for file in (tmp_path / "out").iterdir()}

    @pytest.mark.parametrize("force", [False, True])
    def test_alpha_0_is_the_aligned_checkpoint_and_is_not_exported(
        self, study: str, tmp_path: Path, force: bool
    ) -> None:
        with pytest.raises(StudyError, match="--alpha 0: the aligned checkpoint itself"):
            export(study, tmp_path / "out", alpha=0.0, force=force)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({"alpha": float("nan")}, "--alpha: nan"),
            ({"dtype": "int8"}, "--dtype: int8; expected one of bfloat16, float16, float32"),
            ({"private": True}, "--private: no --push-to-hub"),
            ({"as_adapter": True}, "--as-adapter: a pair of whole checkpoints"),
            ({"alpha": 0.7, "force": True, "verify": True}, "--verify: alpha 0.7, which was not evaluated"),
            ({"dtype": "float16", "verify": True}, "--verify with --dtype float16: another rounding"),
        ],
    )
    def test_options_that_cannot_be_met_are_refused_before_anything_is_written(
        self, study: str, tmp_path: Path, wanted: dict[str, Any], found: str
    ) -> None:
        with pytest.raises(StudyError) as fault:
            export(study, tmp_path / "out", **wanted)
        assert found in str(fault.value)
        assert not [p.name for p in tmp_path.iterdir() if "out" in p.name]

    def test_a_source_that_changed_since_the_trial_is_named(self, home: Path, tmp_path: Path) -> None:
        """The same names, shapes and sizes: only numbers differ."""
        pair = make_pair(tmp_path / "pair", "llama-untied")
        url = f"sqlite:///{tmp_path / 'study.db'}"
        make_study(home, url, aligned=str(pair[0]), sft=str(pair[1]))
        edit(pair[1], lambda name, t: t * 2 if name == "lm_head.weight" else t)
        with pytest.raises(SettingsChanged, match=r"other settings \(files\.sft: '\w+' there, '\w+' now\)"):
            export(url, tmp_path / "out")

    @pytest.mark.parametrize(
        ("text", "size"), [("5GB", 5 * 10**9), ("2 GiB", 2 << 30), ("1.5kb", 1500), ("7KiB", 7168)]
    )
    def test_a_shard_size_is_read_as_people_write_it(self, text: str, size: int) -> None:
        assert size_in_bytes(text) == size

    @pytest.mark.parametrize("text", ["", "0GB", "5XB", "-1GB", "GB", "5"])
    def test_what_is_no_size_is_refused(self, text: str) -> None:
        with pytest.raises(StudyError, match="--max-shard-size"):
            size_in_bytes(text)


def test_expo_json_says_where_everything_comes_from(study: str, home: Path, tmp_path: Path) -> None:
    export(study, tmp_path / "out")
    found = read_provenance(tmp_path / "out" / "expo.json")
    assert found["pair"]["sft"] == {"id": str(home / "sft"), "revision": "local", "on_hub": False}
    assert found["fingerprints"]["trial"] == f"{2:032x}"
    assert found["settings"]["prompts.hash"] == "abc"
    assert found["spec"]["prompts"]["n"] == 2
    assert found["answers"]["trial"]["rewards"] == [1.9, 1.9]
    assert {"torch", "vllm", "transformers", "optuna", "python", "processor"} <= found["evaluated_on"].keys()
    assert found["commands"]["export"] == f"expo-search export mine --alpha 1.0 --storage {study} --out DIR"


def test_a_source_that_was_written_to_since_is_refused_and_one_that_was_only_touched_is_not(
    tmp_path: Path,
) -> None:
    make_pair(tmp_path, "llama-untied")
    make_reward_model(tmp_path / "reward")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    make_study(tmp_path, url)
    file = open_checkpoint(tmp_path / "sft", role="sft").tensors["lm_head.weight"]
    os.utime(file.file, ns=(1, 1))
    export(url, tmp_path / "touched")
    with file.file.open("r+b") as stream:  # the first of its bytes: none of those that are sampled
        stream.seek(file.offset)
        stream.write(bytes(2))
    with pytest.raises(SettingsChanged, match=r"other weights in .*sft than those that were evaluated"):
        export(url, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()


@pytest.mark.parametrize(("asked", "expected"), [("auto", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_weights_are_exported_in_the_dtype_in_which_they_were_evaluated(
    home: Path, tmp_path: Path, asked: str, expected: str
) -> None:
    url, said = f"sqlite:///{tmp_path / 'study.db'}", list[str]()
    make_study(home, url, engine={"dtype": asked})
    export_study(url, "mine", Wanted(tmp_path / "out"), said.append, lambda *_: None)
    assert {t.dtype for t in open_checkpoint(tmp_path / "out", role="x").tensors.values()} == {expected}
    assert (f"written in {asked}, in which the trials were evaluated" in said) == (asked != "auto")


@pytest.mark.parametrize(
    ("config", "stored", "expected"),
    [("float16", torch.bfloat16, "F16"), ("bfloat16", torch.float16, "BF16"), ("float32", torch.float16, "BF16")],
    ids=str,
)
def test_where_the_files_have_another_dtype_than_the_config_they_are_rounded_once_as_the_engine_does(
    tmp_path: Path, config: str, stored: torch.dtype, expected: str
) -> None:
    make_pair(tmp_path, "llama-untied")
    make_reward_model(tmp_path / "reward")
    for role in ("aligned", "sft"):
        edit(tmp_path / role, lambda _, t: t.to(stored))
        file = tmp_path / role / "config.json"
        told = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("dtype", "torch_dtype")}
        file.write_text(json.dumps(told | {"dtype": config}))
    url, said = f"sqlite:///{tmp_path / 'study.db'}", list[str]()
    make_study(tmp_path, url)
    export_study(url, "mine", Wanted(tmp_path / "out"), said.append, lambda *_: None)
    out = open_checkpoint(tmp_path / "out", role="x")
    assert out.dtypes == {expected}
    dtype = {"F16": "float16", "BF16": "bfloat16"}[expected]
    assert out.config["dtype"] == dtype
    assert f"written in {dtype}, in which the trials were evaluated" in said
    aligned, sft = (read_all(tmp_path / role) for role in ("aligned", "sft"))
    for name, tensor in read_all(tmp_path / "out").items():
        theta = 2 * aligned[name].float() - sft[name].float()  # at alpha = 1
        assert torch.equal(tensor, theta.to(tensor.dtype)), name
    dtypes = open_checkpoint(tmp_path / "aligned", role="aligned").dtypes
    assert engine_dtype("auto", {"dtype": config}, dtype, dtypes) == dtype


def test_an_export_says_that_it_was_not_verified_and_what_does_so(study: str, tmp_path: Path) -> None:
    said: list[str] = []
    export_study(study, "mine", Wanted(tmp_path / "out"), said.append, lambda *_: None)
    end = "not verified: --verify proves that it is what was evaluated"
    assert said[-1] == f"alpha = 1 of study mine written to {tmp_path / 'out'}, {end}"
    assert read_provenance(tmp_path / "out")["verified"] is False
    assert "- verified: no" in (tmp_path / "out" / "README.md").read_text()


def test_what_resolving_the_pair_says_and_how_far_it_is_are_passed_on(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(spec: PairSpec, *, say: Callable[[str], None], doing: Callable[[str], None], **options: Any) -> Pair:
        say("downloading 14 GB")
        doing("1 of 14 GB")
        return resolve_pair(spec, say=say, doing=doing, **options)

    @contextmanager
    def working(step: str) -> Iterator[Callable[[str], None]]:
        steps.append(step)
        yield steps.append
        steps.append("over")

    monkeypatch.setattr("expo_search.exporting.study.resolve_pair", resolve)
    said: list[str] = []
    steps: list[str] = []

    def on_bytes(*_: int) -> None:
        assert steps[-1] == "over", "one live line at a time"

    export_study(study, "mine", Wanted(tmp_path / "out"), said.append, on_bytes, working)
    assert said[0] == "downloading 14 GB"
    assert steps == ["checking the study and its checkpoints", "1 of 14 GB", "over"]


def test_a_study_that_cannot_be_written_to_is_exported(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, may = tmp_path / "study.db", os.access
    before = database.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: path != database and may(path, mode))
    assert export(study, tmp_path / "out") == 1.0
    assert database.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "study.db"]


class TestAdapter:
    def test_the_search_sees_base_and_merged(self, adapted: str, home: Path, tmp_path: Path) -> None:
        """theta(1) = base + 2 B A scale, from the merged checkpoint as it is rounded."""
        export(adapted, tmp_path / "out")
        base, theta = read_all(home / "aligned"), read_all(tmp_path / "out")
        merged = read_all(next((tmp_path / "cache" / "checkpoints").iterdir()))
        moved = [name for name in base if not torch.equal(theta[name], base[name])]
        assert moved == ["model.layers.0.self_attn.q_proj.weight"]
        for name in base:
            wide = merged[name].float()
            assert torch.equal(theta[name], (wide - base[name].float() + wide).bfloat16())

    def test_a_rescaled_adapter_merges_to_the_same_model_up_to_rounding(
        self, adapted: str, home: Path, tmp_path: Path
    ) -> None:
        export(adapted, tmp_path / "out")
        export(adapted, tmp_path / "lora", as_adapter=True)
        before = json.loads((home / "adapter" / "adapter_config.json").read_text())
        after = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        base = {"base_model_name_or_path": str(home / "aligned"), "revision": None}
        assert after == before | base | {"lora_alpha": 2.0 * before["lora_alpha"]}
        assert not (tmp_path / "lora" / "model.safetensors").exists()
        metadata = huggingface_hub.metadata_load(tmp_path / "lora" / "README.md") or {}
        assert metadata["library_name"] == "peft"
        assemble.merge_adapter(home / "aligned", tmp_path / "lora", tmp_path / "again")
        theta, again = read_all(tmp_path / "out"), read_all(tmp_path / "again")
        for name in theta:
            # the checkpoint was rounded to bfloat16 twice more: merged, and then theta
            torch.testing.assert_close(again[name], theta[name], rtol=2**-6, atol=2**-6)

    def test_a_rescaled_adapter_speaks_as_in_the_search(self, adapted: str, home: Path, tmp_path: Path) -> None:
        """With the base's tokenizer, where the adapter has none of its own."""
        assert not (home / "adapter" / "tokenizer_config.json").exists()
        export(adapted, tmp_path / "lora", as_adapter=True)
        there, here = (AutoTokenizer.from_pretrained(path) for path in (home / "aligned", tmp_path / "lora"))
        assert here.chat_template == there.chat_template
        assert here("some words") == there("some words")

    def test_peft_reads_the_rescaled_adapter(self, adapted: str, home: Path, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft", reason="peft is not installed (extra `train`)")
        from transformers import AutoModelForCausalLM

        export(adapted, tmp_path / "lora", as_adapter=True)
        base = AutoModelForCausalLM.from_pretrained(home / "aligned", dtype=torch.float32)
        merged = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload().state_dict()
        name = "model.layers.0.self_attn.q_proj.weight"
        lora = open_adapter(home / "adapter")
        a, b = (load_file(t.file)[t.name].float() for t in lora.factors[name])
        expected = read_all(home / "aligned")[name].float() + 2 * lora.scale * (b @ a)
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=1e-6)

    def test_a_study_of_an_older_version_has_no_path_in_what_is_uploaded(
        self, adapted: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, hub = Store(adapted, "mine"), FakeHub()
        known = store.attributes.settings or Settings()
        header = known.pair.aligned.rpartition("#")[2]
        spelled = f"{home / 'aligned'}+{home / 'adapter'}@local+{'9' * 16}#{header}"
        store.keep(StudyAttributes(settings=known.updated(Settings.from_flat({"pair.aligned": spelled}))))
        store.close()
        monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        export(adapted, tmp_path / "out", push_to="me/model")
        there = json.loads(hub.files["expo.json"])["settings"]["pair.aligned"]
        assert there == f"./aligned+./adapter@local+{'9' * 16}#{header}"

    @pytest.mark.parametrize("option", [{"dtype": "float32"}, {"verify": True}])
    def test_options_of_a_checkpoint_do_not_go_with_an_adapter(
        self, adapted: str, tmp_path: Path, option: dict[str, Any]
    ) -> None:
        with pytest.raises(StudyError, match="--as-adapter: --dtype or --verify"):
            export(adapted, tmp_path / "out", as_adapter=True, **option)


def test_answers_beyond_the_look_at_which_a_trial_ended_are_not_the_trials(home: Path, tmp_path: Path) -> None:
    """They have no reward, and whoever evaluates the trial again does not get that far."""
    control, ended = make_evaluation(0, 0.0, 0.0, 0.1, n=2), make_evaluation(1, 0.5, 0.4, 0.1, n=1)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    make_study(home, url, trials=[control, replace(ended, outcome="hopeless")])
    export(url, tmp_path / "out", alpha=0.5)
    answers = read_provenance(tmp_path / "out")["answers"]
    assert {role: of["positions"] for role, of in answers.items()} == {"trial": [0], "control": [0, 1]}


class FakeHub:
    """As much of HfApi as an upload needs. `calls` keeps what was asked of it."""

    def __init__(self, *, there_public: bool = False, fails: str = "") -> None:
        self.calls: list[str] = []
        self._there_public, self._fails = there_public, fails
        self.files: dict[str, bytes] = {}

    def whoami(self) -> Any:
        return self._call("whoami", {"name": "me"})

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        self.private = bool(private) and not self._there_public
        return self._call("create_repo", huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}"))

    def model_info(self, repo_id: str) -> Any:
        siblings = [{"rfilename": name} for name in self.files]
        info = huggingface_hub.ModelInfo(id=repo_id, private=self.private, siblings=siblings)  # type: ignore[no-untyped-call]
        return self._call("model_info", info)

    def preupload_lfs_files(self, repo_id: str, additions: list[Any]) -> None:
        assert repo_id == "me/model"
        assert [file.path_in_repo.endswith(".safetensors") for file in additions] == [True]
        self._call("preupload_lfs_files", None)

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> None:
        assert (repo_id, commit_message) == ("me/model", "Exported by expo-search")
        for file in operations:
            if isinstance(file, huggingface_hub.CommitOperationDelete):
                del self.files[file.path_in_repo]
                continue
            with file.as_file() as content:
                self.files[file.path_in_repo] = content.read()
        self._call("create_commit", None)

    def _call(self, name: str, answer: Any) -> Any:
        self.calls.append(name)
        if name == self._fails:
            raise OSError("the network is\ndown")
        return answer


class TestHub:
    @pytest.fixture(autouse=True)
    def _token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")

    def test_a_whole_folder_is_uploaded_and_the_token_is_nowhere_in_it(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub = FakeHub()
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        export(study, tmp_path / "out", push_to="me/model", private=True)
        assert hub.calls == ["whoami", "create_repo", "model_info", "preupload_lfs_files", "create_commit"]
        assert {"README.md", "curve.png", "expo.json", "mergekit.yaml", "model.safetensors"} <= set(hub.files)
        assert not any(b"hf_not_a_real_one" in content for content in hub.files.values())

    def test_weights_that_an_earlier_upload_left_go_and_other_files_stay(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """transformers takes model.safetensors before an index, and vLLM obeys an index that is there."""
        hub = FakeHub()
        old = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"}
        hub.files = dict.fromkeys([*old, "model.safetensors", ".gitattributes", "samples.md"], b"old")
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        export(study, tmp_path / "out", push_to="me/model")
        assert not old & set(hub.files)
        assert {name for name, content in hub.files.items() if content == b"old"} == {".gitattributes", "samples.md"}

    def test_folders_of_this_machine_are_named_here_and_not_on_the_hub(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub = FakeHub()
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        export(study, tmp_path / "out", push_to="me/model")
        here = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
        changed = {name for name in here if here[name] != hub.files[name]}
        assert changed == {"expo.json", "mergekit.yaml"}
        for name in ("aligned", "sft"):
            folder = json.loads(here["expo.json"])["pair"][name]["id"]
            assert Path(folder).is_absolute()
            assert folder.encode() in here["mergekit.yaml"]
            assert json.loads(hub.files["expo.json"])["pair"][name]["id"] == f"./{name}"
            assert f'"./{name}"'.encode() in hub.files["mergekit.yaml"]
            assert not any(str(Path(folder).parent).encode() in content for content in hub.files.values())
        assert not any(str(tmp_path).encode() in content for content in hub.files.values())
        there, here_too = (json.loads(files["expo.json"]) for files in (hub.files, here))
        assert there["settings"] == here_too["settings"]
        assert (there["made_at"], there["files"]) == (here_too["made_at"], here_too["files"])
        assert there["spec"]["pair"]["sft"] == "./sft"

    def test_a_config_that_names_a_folder_is_uploaded_without_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_pair(tmp_path, "llama-tied")
        make_reward_model(tmp_path / "reward")
        names = {"config.json": "_name_or_path", "tokenizer_config.json": "name_or_path"}
        for name, key in names.items():
            file = tmp_path / "aligned" / name
            named = {key: "/home/me/runs/dpo", "part": {key: "runs/base"}}
            file.write_text(json.dumps(json.loads(file.read_text()) | named))
        make_study(tmp_path, url := f"sqlite:///{tmp_path / 'study.db'}")
        hub = FakeHub()
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
        export(url, tmp_path / "out", push_to="me/model")
        for name, key in names.items():
            here = json.loads((tmp_path / "out" / name).read_text())
            assert here.pop(key) == "/home/me/runs/dpo"
            assert json.loads(hub.files[name]) == here | {"part": {}}

    def test_an_adapters_base_is_named_so_too(
        self, adapted: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for as_adapter, recipe in ((True, "adapter_config.json"), (False, "mergekit.yaml")):
            hub = FakeHub()
            monkeypatch.setattr(huggingface_hub, "HfApi", lambda hub=hub: hub)
            export(adapted, tmp_path / f"out-{as_adapter}", push_to="me/model", as_adapter=as_adapter)
            found = json.loads(hub.files["expo.json"])
            assert found["pair"]["aligned"]["id"] == "./aligned+./adapter"
            assert found["settings"]["pair.aligned"].startswith("local+local#")
            assert found["spec"]["pair"]["adapter"] == "./adapter"
            assert b'"./aligned' in hub.files[recipe]
            places = (home, tmp_path)
            assert not any(str(p).encode() in content for content in hub.files.values() for p in places)
            monkeypatch.chdir(home)  # where the folders lie as they are named
            spec = stored_spec(found["spec"], name="mine", trust_remote_code=False)
            pair = resolve_pair(spec.pair, trust_remote_code=False, say=lambda _: None)
            sources = (open_checkpoint(s.path, role="x") for s in (pair.aligned, pair.sft))
            assert sources_settings(pair, *sources).flat().items() <= found["settings"].items()

    def test_no_token_is_said_before_any_work(
        self, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        with pytest.raises(StudyError, match="--push-to-hub me/model: no Hub token; expected one that may write"):
            export(study, tmp_path / "out", push_to="me/model")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["a/b/c", "../x", "me/", "me/a..b", "me/<script>"])
    def test_a_name_that_the_hub_does_not_allow_is_refused(self, name: str) -> None:
        with pytest.raises(StudyError, match="--push-to-hub"):
            check_push(name, FakeHub())  # type: ignore[arg-type]

    def test_private_is_never_uploaded_into_a_public_repository(self, tmp_path: Path) -> None:
        hub = FakeHub(there_public=True)
        with pytest.raises(StudyError, match="a public repository; expected a private one"):
            push(tmp_path, "me/model", private=True, instead={}, api=hub)  # type: ignore[arg-type]
        assert "create_commit" not in hub.calls

    def test_it_is_told_how_far_an_upload_is(self, tmp_path: Path) -> None:
        for name, n_bytes in (("model-1.safetensors", 3000), ("model-2.safetensors", 1000), ("config.json", 10)):
            (tmp_path / name).write_bytes(b"x" * n_bytes)
        hub, told = FakeHub(), list[str]()
        push(tmp_path, "me/model", private=False, instead={}, doing=told.append, api=hub)  # type: ignore[arg-type]
        assert told[0] == "uploading file 1 of 2: 0 B of 4 kB sent"
        assert re.fullmatch(r"uploading file 2 of 2: 3 kB of 4 kB sent, [\d.]+ .?B/s, left 0:0\d", told[1])
        assert told[2:] == [""]
        assert hub.calls[-3:] == ["preupload_lfs_files", "preupload_lfs_files", "create_commit"]

    @pytest.mark.parametrize("call", ["create_repo", "preupload_lfs_files", "create_commit"])
    def test_a_failed_upload_says_where_the_whole_model_is(self, tmp_path: Path, call: str) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"x")
        with pytest.raises(
            StudyError, match=f"network is down.*whole in {tmp_path}; the same command with --force writes"
        ):
            push(tmp_path, "me/model", private=False, instead={}, api=FakeHub(fails=call))  # type: ignore[arg-type]

    def test_a_token_that_the_hub_refuses_is_said_before_any_work(self) -> None:
        with pytest.raises(StudyError, match=r"the network is down; .*hf auth whoami"):
            check_push("me/model", FakeHub(fails="whoami"))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}', "[" * 99999])
def test_a_file_that_export_did_not_write_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "expo.json").write_text(content)
    with pytest.raises(StudyError, match=r"expo\.json") as fault:
        read_provenance(tmp_path)
    assert "\n" not in str(fault.value)


def test_a_file_that_was_edited_is_refused(study: str, tmp_path: Path) -> None:
    export(study, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "expo.json").read_text())
    del found["trial"]["fingerprint"]
    (tmp_path / "out" / "expo.json").write_text(json.dumps(found))
    with pytest.raises(StudyError, match="a file without fingerprint"):
        read_provenance(tmp_path / "out")


def test_an_alpha_that_float32_cannot_hold_is_refused(study: str, tmp_path: Path) -> None:
    export(study, tmp_path / "out")
    text = (tmp_path / "out" / "expo.json").read_text()
    (tmp_path / "out" / "expo.json").write_text(text.replace('"alpha": 1.0', '"alpha": 1e39'))
    with pytest.raises(StudyError, match=r"alpha: not finite in float32 \(found 1e\+39\)"):
        read_provenance(tmp_path / "out")


def test_a_trial_that_broke_a_guardrail_says_so(home: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    broken = replace(make_evaluation(1, 0.5, 0.4, 0.1), broken=("length",), outcome="degenerate")
    make_study(home, url, trials=[make_evaluation(0, 0.0, 0.0, 0.1), broken])
    export(url, tmp_path / "out", alpha=0.5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**It breaks guardrails** of the search: length." in card
    assert "stopped early (degenerate)" in card


def test_what_an_exported_model_is_good_for_stands_at_the_end() -> None:
    assert "vllm serve DIR --trust-remote-code" in uses_of(Path("DIR"), trust_remote_code=True)
    said = uses_of(Path("a folder"))
    assert "vllm serve 'a folder'" in said
    assert "convert_hf_to_gguf.py 'a folder' --outfile 'a folder.gguf'" in said
