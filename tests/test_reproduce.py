"""A tiny pair searched, exported, verified, reproduced with the real engine: what comes out is what was evaluated."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from fakes import FakeWatcher, make_evaluation
from pseudo_terminal import on_a_terminal
from test_build import write_lora
from transformers import AutoModelForCausalLM, AutoTokenizer
from twins import edit, write_prompts

from expo_search.api import open_session
from expo_search.config.presets import load_study
from expo_search.config.spec import StudySpec
from expo_search.contracts import Completion, Prompt
from expo_search.dtypes import Asked
from expo_search.engine.start import ModelSpec
from expo_search.errors import CheckpointError, SettingsChanged, StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.exporting.provenance import read_provenance, text_hash
from expo_search.exporting.reproduce import Reproduction, _compare, check_n_prompts, reproduce
from expo_search.exporting.study import export_study
from expo_search.exporting.verify import engine_dtype, verify
from expo_search.exporting.wanted import Wanted
from expo_search.inputs.chat_template import encode_chat
from expo_search.results.summary_json import as_json
from expo_search.search.confirm import Confirmation
from expo_search.search.loop import evaluations, search
from expo_search.session.preflight import check
from expo_search.session.running import start
from expo_search.stats.paired import Estimate
from expo_search.store.attributes import StudyAttributes
from expo_search.store.study_store import Store
from expo_search.weights.shape import Shape, shape_of


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_home, folder, dirs_exist_ok=True)
    write_prompts(folder / "prompts.jsonl", 24)
    return folder


def study_spec(home: Path) -> StudySpec:
    return load_study(
        overrides={
            "pair": {"aligned": str(home / "aligned"), "sft": str(home / "sft"), "reward_model": str(home / "reward")},
            "prompts": {"source": str(home / "prompts.jsonl"), "n": 18},
            "sampling": {"max_tokens": 8, "top_k": 0, "top_p": 1.0},
            "search": {"alpha_min": 0.0, "alpha_max": 2.0, "sampler": "random"},
            "engine": {"max_model_len": 128, "kv_cache_gib": 1, "max_num_seqs": 16},
        },
        name="tiny",
    )


@pytest.fixture(scope="module")
def searched(home: Path) -> Evaluation:
    """The last trial of a search of three, in study.db."""
    spec = study_spec(home)
    running = start(check(spec, url(home), lambda _: None), lambda _: None)
    search(running.store, running.objective(FakeWatcher(), running.checked.search_prompts), spec.search, 3)
    last = evaluations(running.store.study)[-1]
    running.close()
    return last


def url(home: Path) -> str:
    return f"sqlite:///{home / 'study.db'}"


@pytest.fixture(scope="module")
def exported(home: Path, searched: Evaluation) -> Path:
    said: list[str] = []
    wanted = Wanted(home / "best", alpha=searched.alpha, verify=True, max_shard_bytes=200_000)
    export_study(url(home), "tiny", wanted, said.append, lambda *_: None)
    same = f"fingerprint {searched.fingerprint} and 8 of the trial's {searched.reward.n} answers, the same"
    assert f"verified: {same}" in said
    assert said[-1].endswith(f"written to {home / 'best'}, verified")
    assert read_provenance(home / "best")["verified"] is True
    return home / "best"


def test_a_verified_export_loads_in_transformers(exported: Path) -> None:
    assert len(list(exported.glob("model-*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def test_plain_vllm_gives_the_trials_answers_without_any_of_our_code(
    exported: Path, home: Path, searched: Evaluation
) -> None:
    from vllm import LLM, SamplingParams

    store = Store(url(home), "tiny")
    prompts = store.prompts("search")
    stored = store.completions(searched.trial, "search", prompts)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    multiplied_in = json.loads((exported / "expo.json").read_text())["settings"]["engine.arithmetic"]
    llm = LLM(
        model=str(exported), dtype=multiplied_in, max_model_len=128, enforce_eager=True, enable_chunked_prefill=False,
        max_num_batched_tokens=4096, max_num_seqs=16,
    )  # fmt: skip
    ids = [encode_chat(tokenizer, [{"role": "user", "content": p.text}], add_generation_prompt=True) for p in prompts]
    params = [
        SamplingParams(temperature=0.7, max_tokens=8, presence_penalty=0.1, frequency_penalty=0.1, seed=p.seed(42))
        for p in prompts
    ]
    answers = llm.generate([{"prompt_token_ids": i} for i in ids], params, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    assert [a.outputs[0].text.replace("\0", "�") for a in answers[: len(stored)]] == [s.completion.text for s in stored]


def test_a_folder_that_speaks_otherwise_or_has_other_weights_is_not_verified(
    exported: Path, home: Path, searched: Evaluation, tmp_path: Path
) -> None:
    store, spec = Store(url(home), "tiny"), study_spec(home)
    stored = store.completions(searched.trial, "search", store.prompts("search"))
    model = ModelSpec(home / "aligned", home / "sft", spec.sampling, spec.engine, spec.search.seed)
    shutil.copytree(exported, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(CheckpointError, match=r"1\d of 18 answers that differ from the trial's"):
        verify(tmp_path / "other", model, searched.fingerprint, stored, lambda _: None)
    with pytest.raises(CheckpointError, match=r"--verify of aligned: weights with fingerprint \w+; expected"):
        verify(home / "aligned", model, searched.fingerprint, stored, lambda _: None)


def test_a_failed_check_leaves_no_folder(
    home: Path, searched: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path, *_: object) -> str:
        assert (folder / "model.safetensors").is_file()
        raise CheckpointError(where="--verify", found="other answers", expected="the same", do="report it")

    monkeypatch.setattr("expo_search.exporting.study.verify", fails)
    with pytest.raises(CheckpointError, match="other answers"):
        export_study(
            url(home),
            "tiny",
            Wanted(tmp_path / "out", alpha=searched.alpha, verify=True),
            lambda _: None,
            lambda *_: None,
        )
    assert not list(tmp_path.iterdir())


def test_an_export_is_reproduced_on_the_same_machine(exported: Path, searched: Evaluation) -> None:
    watcher = FakeWatcher()
    again = reproduce(read_provenance(exported), watcher, lambda _: None, trust_remote_code=False)
    assert again.grade == "identical"
    assert (again.n_same, again.n) == (searched.reward.n, searched.reward.n)
    assert again.again.reward == searched.reward
    assert [alpha for _, alpha, _, _ in watcher.starts] == [0.0, searched.alpha]
    assert again.differences == ()


def test_the_first_prompts_alone_can_be_reproduced(exported: Path) -> None:
    origin = read_provenance(exported)
    said: list[str] = []

    @contextmanager
    def working(step: str) -> Iterator[Callable[[str], None]]:
        said.append(step)
        yield said.append

    again = reproduce(origin, FakeWatcher(), lambda _: None, trust_remote_code=False, n_prompts=6, working=working)
    kept = sum(position < 6 for position in origin["answers"]["trial"]["positions"])
    assert (again.again.gain.n, again.n_same, again.n) == (6, kept, kept)
    assert again.same_weights
    assert f"on the first 6 of {origin['trial']['n_prompts']} prompts" in again.report()
    assert [step.partition(" ")[0] for step in said] == ["checking", "starting"]


def test_on_a_terminal_no_library_speaks(exported: Path, tmp_path: Path) -> None:
    code, shown = on_a_terminal(tmp_path, "reproduce", str(exported), "--n-prompts", "6")
    assert code == 0, shown[-2000:]
    assert "weights: the same" in shown
    # vLLM's, which a live line once let through, and Python's warnings
    assert not re.search(r"INFO|WARNING|vllm\.|nanobind|Warning:", shown), shown


@pytest.mark.slow  # four engines
def test_a_shape_is_searched_exported_verified_and_reproduced_to_the_bit(home: Path, tmp_path: Path) -> None:
    spec, here = study_spec(home), f"sqlite:///{tmp_path / 'shapes.db'}"
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"racing": False})})
    with open_session(spec, here, quiet=True) as session:
        best = session.search(2).best
        assert best is not None
        # a random reward model sees no gain: a confirmation that was never made says that there is one
        gain = Confirmation(best.trial, best.alpha, 0.5, 0.1, 6, "", 1.0, 0.5)
        session.running.store.keep(StudyAttributes(confirmed={str(best.trial): gain.attributes()}))
        found = next(s for n in range(1, 12) if (s := session.shape("depth", n)).best is not None)
    assert found.best is not None
    assert shape_of(found.best.alpha) is not None
    said: list[str] = []
    wanted = Wanted(tmp_path / "out", shape="depth", force=True, verify=True)
    export_study(here, "tiny", wanted, said.append, lambda *_: None)
    assert f"verified: fingerprint {found.best.fingerprint} and 8 of the trial's 18 answers, the same" in said
    origin = read_provenance(tmp_path / "out")
    assert Shape.from_json(origin["shape"]) == shape_of(found.best.alpha)
    again = reproduce(origin, FakeWatcher(), lambda _: None, trust_remote_code=False)
    assert (again.grade, again.n_same, again.n) == ("identical", 18, 18)
    assert again.again.fingerprint == found.best.fingerprint
    assert again.again.reward == found.best.reward
    # a plain alpha of the same size makes other weights
    plain = reproduce(origin | {"shape": None}, FakeWatcher(), lambda _: None, trust_remote_code=False, n_prompts=2)
    assert plain.grade == "different"


def test_answers_beyond_the_look_at_which_a_trial_ended_do_not_count(tmp_path: Path) -> None:
    """Earlier versions listed them, without a reward."""
    store, prompts = Store(f"sqlite:///{tmp_path / 'again.db'}", "s"), [Prompt(f"{i}", f"{i}?") for i in range(3)]
    store.put_prompts("search", prompts)
    for trial, n in ((0, 3), (1, 2)):
        store.add_completions(trial, "search", {i: Completion(prompts[i], "yes", 1, "stop") for i in range(n)})
        store.add_rewards(trial, "search", dict.fromkeys(range(n), 1.0))
    control, again = make_evaluation(0, 0.0, 0.0, 0.1, n=3), make_evaluation(1, 0.5, 0.4, 0.1, n=2)
    every = {"positions": [0, 1, 2], "sha256": [text_hash("yes")] * 3}
    answers = {"trial": every | {"rewards": [1.0, 1.0, None]}, "control": every | {"rewards": [1.0] * 3}}
    trials = {"trial": as_json(again), "control": as_json(control)}
    found = _compare(trials | {"answers": answers, "evaluated_on": {}}, store, control, again)
    assert (found.grade, found.n_same, found.n) == ("identical", 2, 2)


@pytest.mark.parametrize("n", [1, 10_000])
def test_more_prompts_than_the_trial_saw_are_refused_before_anything_is_read(exported: Path, n: int) -> None:
    with pytest.raises(StudyError, match=rf"--n-prompts: {n}; expected 2 to \d+, which the trial saw"):
        check_n_prompts(read_provenance(exported), n)


def test_other_weights_than_those_of_then_are_different_and_exit_with_1(
    exported: Path, home: Path, searched: Evaluation, tmp_path: Path
) -> None:
    """One number changed, where neither sizes nor samples show it: only the engine's fingerprint does."""
    for name in ("aligned", "sft", "reward"):
        shutil.copytree(home / name, tmp_path / name)
    edit(
        tmp_path / "sft",
        lambda name, t: t.view(-1).index_fill(0, torch.tensor([0]), 3.0).view(t.shape) if "embed" in name else t,
    )
    text = (exported / "expo.json").read_text().replace(f"{home}/", f"{tmp_path}/")
    (tmp_path / "expo.json").write_text(text)
    shutil.copyfile(home / "prompts.jsonl", tmp_path / "prompts.jsonl")
    out, _ = run(tmp_path, "reproduce", "expo.json", "--json", "--quiet", code=1)
    found = json.loads(out)
    assert found["grade"] == "different"
    assert found["fingerprint"]["then"] == searched.fingerprint != found["fingerprint"]["now"]


def test_a_source_that_visibly_changed_is_refused_before_an_engine_starts(
    exported: Path, home: Path, tmp_path: Path
) -> None:
    for name in ("aligned", "sft", "reward"):
        shutil.copytree(home / name, tmp_path / name)
    shutil.copyfile(home / "prompts.jsonl", tmp_path / "prompts.jsonl")
    edit(tmp_path / "aligned", lambda _, t: t * 2)
    (tmp_path / "expo.json").write_text((exported / "expo.json").read_text().replace(f"{home}/", f"{tmp_path}/"))
    said: list[str] = []
    with pytest.raises(SettingsChanged, match=r"files\.aligned"):
        reproduce(read_provenance(tmp_path), FakeWatcher(), said.append, trust_remote_code=False)
    assert "starting vLLM" not in said


def make_reproduction(*, same_weights: bool = True, same_rewards: bool = False, gain: float = 0.4) -> Reproduction:
    raw = {"difference": 9.0, "difference_95": [8.0, 10.0]}  # of another objective's study
    then: dict[str, Any] = raw | {"gain": 0.4, "gain_95": [0.2, 0.6], "reward": 1.4, "fingerprint": f"{1:032x}"}
    lines = () if same_rewards else ("torch: 2.12 then, 2.13 now",)
    now = make_evaluation(1, 0.5, gain, 0.1)
    then["n_prompts"] = now.gain.n
    return Reproduction(then, now, make_evaluation(0, 0, 0, 0.1), same_weights, 90, 100, same_rewards, lines)


@pytest.mark.parametrize(
    ("found", "grade"),
    [
        (make_reproduction(same_rewards=True), "identical"),
        (make_reproduction(), "same weights, other environment"),
        (make_reproduction(same_weights=False, same_rewards=True), "different"),
    ],
)
def test_the_grade_asks_for_weights_first_and_then_for_rewards(found: Reproduction, grade: str) -> None:
    assert found.grade == grade == found.as_json()["grade"]
    assert found.report().startswith(f"{grade}: alpha = 0.5")


def test_a_difference_of_environment_is_listed_with_whether_the_gain_still_holds() -> None:
    assert "environment, torch: 2.12 then, 2.13 now" in make_reproduction().report()
    assert "within the 95 % interval of then" in make_reproduction(gain=0.25).report()
    assert "outside the 95 % interval of then" in make_reproduction(gain=0.1).report()


def test_the_gain_is_of_the_studys_objective_as_in_show() -> None:
    found = make_reproduction(gain=0.25)
    found = replace(found, again=replace(found.again, difference=Estimate(-3.0, 0.1, 100)))
    assert "gain +0.4000 then, +0.2500 now" in found.report()
    assert found.as_json()["gain"] == {"then": 0.4, "now": 0.25}
    assert found.within


NUMBERS = {
    "trial": 1, "alpha": 0.5, "n_prompts": 2, "reward": 1.4, "gain": 0.4, "gain_95": [None, 0.6], "difference": 0.4,
    "difference_95": [0.2, 0.6], "fingerprint": "f",
}  # fmt: skip
ANSWERS = {"positions": [0, 1], "sha256": ["a", "b"], "rewards": [1.0, None]}
EXPORTED = {
    "format": 1, "alpha": 0.5, "trial": NUMBERS, "control": NUMBERS | {"trial": 0, "alpha": 0},
    "answers": {"trial": ANSWERS, "control": ANSWERS}, "settings": {"prompts.n": 2}, "spec": {"name": "tiny"},
    "study": "tiny", "evaluated_on": {"torch": "2"}, "verified": True,
}  # fmt: skip


def write_exported(folder: Path, place: str, value: object) -> Path:
    content = json.loads(json.dumps(EXPORTED))
    *above, key = place.split(".")
    inside = content
    for name in above:
        inside = inside[name]
    inside[key] = value
    (folder / "expo.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("place", "value"), [("trial", None), ("alpha", 2), ("new in another version", [1])])
def test_what_export_writes_is_read_whole(tmp_path: Path, place: str, value: object) -> None:
    assert read_provenance(write_exported(tmp_path, place, value)) == EXPORTED | {place: value}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("settings", []), ("settings", None), ("spec", 3), ("answers", None), ("answers.trial", []),
        ("answers.trial.positions", [0]), ("answers.control.rewards", ["1", 2]), ("evaluated_on", None),
        ("evaluated_on.torch", 2), ("study", None), ("alpha", "x"), ("trial", "x"), ("trial.trial", 10**30),
        ("trial.trial", -1), ("trial.alpha", "x"), ("trial.alpha", float("nan")), ("trial.alpha", 10**400),
        ("trial.gain", None), ("trial.gain_95", None), ("trial.gain_95", [0.1]), ("trial.fingerprint", 7),
        ("control", None), ("control.fingerprint", None),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_one_clear_line(tmp_path: Path, place: str, value: object) -> None:
    where = place.removesuffix(".positions")  # as the three lists go together
    with pytest.raises(StudyError, match=rf"expo\.json: {where}[.\d]*: .* \(found .*; expected an expo\.json") as fault:
        read_provenance(write_exported(tmp_path, place, value))
    assert "\n" not in str(fault.value)


def test_of_many_faults_the_first_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"positions\.2: [^;]*; \.\.\.; expected") as fault:
        read_provenance(write_exported(tmp_path, "answers.trial.positions", ["x"] * 1000))
    assert len(str(fault.value)) < 600


def test_an_alpha_that_was_never_evaluated_cannot_be_reproduced() -> None:
    with pytest.raises(StudyError, match=r"alpha 0\.7: an alpha that was never evaluated"):
        reproduce({"alpha": 0.7, "trial": None}, FakeWatcher(), lambda _: None, trust_remote_code=False)


@pytest.mark.parametrize(
    ("asked", "config", "written", "expected"),
    [
        ("auto", "bfloat16", None, "bfloat16"),
        ("auto", "bfloat16", "bfloat16", "bfloat16"),
        ("auto", "bfloat16", "float32", "bfloat16"),
        ("auto", "bfloat16", "float16", None),
        ("auto", "float32", None, "auto"),
        ("auto", "float32", "bfloat16", None),
        ("auto", "float32", "float32", "auto"),
        ("auto", None, None, "auto"),
        ("auto", None, "bfloat16", None),
        ("float32", "bfloat16", "float32", "float32"),
        ("float32", "bfloat16", None, None),
        ("float16", "bfloat16", None, None),
        ("float16", "bfloat16", "float16", "float16"),
        ("float16", "bfloat16", "float32", "float16"),
    ],
)
def test_a_checkpoint_is_verified_in_the_dtype_of_its_trial(
    asked: Asked, config: str | None, written: str | None, expected: str | None
) -> None:
    assert engine_dtype(asked, {"dtype": config}, written) == expected


@pytest.mark.slow
def test_a_base_and_its_adapter_are_searched_exported_and_verified_by_the_command(home: Path, tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", home / "aligned")
    pair = ["--aligned", str(home / "aligned"), "--adapter", "lora", "--reward-model", str(home / "reward")]
    sizes = ["--n-prompts", "6", "--max-tokens", "8", "--max-model-len", "128", "--alpha-max", "2", "--trials", "2"]
    search_them = [*pair, "--prompts", str(home / "prompts.jsonl"), *sizes, "--sampler", "random"]
    run(tmp_path, *search_them, "--quiet")
    (alpha,) = {e.alpha for e in evaluations(Store(f"sqlite:///{tmp_path / 'expo-search.db'}", "custom").study)} - {0.0}
    _, said = run(tmp_path, "export", "--alpha", repr(alpha), "--out", "best", "--verify")
    assert "6 of the trial's 6 answers, the same" in said
    run(tmp_path, "export", "--alpha", repr(alpha), "--out", "best-lora", "--as-adapter")
    assert run(tmp_path, "reproduce", "best-lora", "--quiet")[0].startswith("identical")
