"""What is checked before an engine starts, on files of a tiny pair."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_build import write_lora
from twins import edit, make_tokenizer, write_prompts

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.config.presets import load_study
from expo_search.config.stored_paths import found_from_here
from expo_search.engine import ranks, start
from expo_search.engine.machine import Machine
from expo_search.errors import ExpoError, PromptsError, SettingsChanged, StoreError, StudyError
from expo_search.inputs.source import Pair, Source
from expo_search.session import planning, preflight
from expo_search.session.preflight import Checked, check, check_stored
from expo_search.session.running import pin
from expo_search.session.settings import advice_on_changes, sources_settings
from expo_search.store.attributes import StudyAttributes, stored_attributes
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store

N_ROWS = 20


@pytest.fixture
def home(tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", N_ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def adapted(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an adapter to `aligned`, and a cache of its own."""
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(home / "cache"))
    write_lora(home / "adapter", home / "aligned")
    return home


def checked(
    n: int | None = None,
    aligned: str = "aligned",
    reward: str = "auto",
    backend: str = "transformers",
    adapter: str | None = None,
    **engine: Any,
) -> Checked:
    prompts = {"source": "prompts.jsonl"} | ({} if n is None else {"n": n})
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"aligned": aligned, "adapter": adapter, "sft": "sft", "reward_model": "reward"},
        "prompts": prompts,
        "sampling": {"max_tokens": 8},
        "reward": {"arithmetic": reward, "backend": backend},
        "engine": {"max_model_len": 128} | engine,
    }
    return check(load_study(overrides=overrides), "sqlite:///test.db", lambda _: None)


def differing(a: Checked, b: Checked) -> set[str]:
    one, other = a.settings.flat(), b.settings.flat()
    return {key for key in one | other if one.get(key) != other.get(key)}


@pytest.mark.usefixtures("home")
def test_what_prompts_and_database_tell_is_told_before_a_checkpoint_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a checkpoint was read")

    store = Store("sqlite:///test.db", "custom")
    pin(store, checked(15))
    monkeypatch.setattr(preflight, "resolve_pair", read)
    with store.owned(), pytest.raises(StoreError, match="another session of this process"):
        checked(15)
    store.close()
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"aligned": "aligned", "sft": "sft", "reward_model": "reward"},
        "prompts": {"source": "prompts.jsonl", "n": 15},
        "sampling": {"max_tokens": 9},
    }
    with pytest.raises(SettingsChanged, match=r"\(sampling\.max_tokens: 8 there, 9 now\)"):
        check(load_study(overrides=overrides), "sqlite:///test.db", lambda _: None)
    for wanted in (6, 1):
        with pytest.raises(PromptsError, match=r"5 prompts that the search has not seen.*--confirm 5|--confirm: 1; "):
            check(load_study(overrides=overrides), "sqlite:///x.db", lambda _: None, to_confirm=(wanted, "--confirm"))


@pytest.mark.usefixtures("home")
class TestPrompts:
    def test_a_small_source_is_not_used_up_by_the_search_where_nobody_said_how_many(self) -> None:
        found = checked()
        assert len(found.search_prompts) == 15
        fresh = found.confirm_prompts(None)
        assert len(fresh) == 5
        assert not {p.id for p in fresh} & {p.id for p in found.search_prompts}

    def test_the_study_goes_on_with_as_many_when_their_number_is_given(self) -> None:
        assert differing(checked(), checked(15)) == set()

    @pytest.mark.parametrize("rows", [N_ROWS - 10, N_ROWS + 10])
    def test_others_than_a_stored_study_has_are_to_be_put_back_and_no_option_of_a_search_is_named(
        self, rows: int, home: Path
    ) -> None:
        store = Store("sqlite:///test.db", "custom")
        pin(store, checked(15))
        store.close()
        write_prompts(home / "prompts.jsonl", rows)
        with pytest.raises(ExpoError) as fault:
            check_stored("sqlite:///test.db", "custom", lambda _: None, trust_remote_code=False)
        assert fault.value.do == (
            "put back what was searched, or search again with what changed under another --study-name"
        )

    def test_all_of_them_can_be_asked_for(self) -> None:
        assert len(checked(N_ROWS).search_prompts) == N_ROWS


class TestSettings:
    def test_a_folder_is_the_same_however_its_path_is_spelled(self, home: Path) -> None:
        spelled = [checked(aligned=path) for path in ("aligned", "aligned/", "./aligned", str(home / "aligned"))]
        assert all(differing(spelled[0], other) == set() for other in spelled)

    def test_so_are_a_base_and_its_adapter(self, adapted: Path) -> None:
        spelled = [
            checked(aligned=base, adapter=adapter)
            for base, adapter in (
                ("aligned", "adapter"),
                ("./aligned", "./adapter/"),
                (str(adapted / "aligned"), str(adapted / "adapter")),
            )
        ]
        assert all(differing(spelled[0], other) == set() for other in spelled)
        for name in ("aligned", "adapter"):
            (adapted / name).rename(adapted / f"moved-{name}")
        moved = checked(aligned="moved-aligned", adapter="moved-adapter")
        assert differing(spelled[0], moved) == set()
        assert spelled[0].settings.pair.aligned.startswith("local+local#")

    @pytest.mark.usefixtures("adapted")
    def test_of_a_base_and_its_adapter_that_which_is_on_the_hub_is_its_commit_there(self) -> None:
        pair = checked(adapter="adapter").pair
        base, lora = (Source(pair.aligned.path, f"o/{name}", name * 8, on_hub=True) for name in ("b", "l"))
        merged, sft = (open_checkpoint(s.path, role="x") for s in (pair.aligned, pair.sft))

        def named(made_of: Pair) -> str:
            return sources_settings(made_of, merged, sft).pair.aligned.partition("#")[0]

        assert named(replace(pair, base=base)) == "o/b@bbbbbbbb+local"
        assert named(replace(pair, adapter=lora)) == "local+o/l@llllllll"
        assert named(replace(pair, base=base, adapter=lora)) == "o/b@bbbbbbbb+o/l@llllllll"

    def test_another_adapter_is_another_pair(self, adapted: Path) -> None:
        before = checked(adapter="adapter")
        weights = adapted / "adapter" / "adapter_model.safetensors"
        save_file({name: t * 1.5 for name, t in load_file(weights).items()}, weights)
        assert differing(before, checked(adapter="adapter")) == {"files.aligned"}

    @pytest.mark.usefixtures("adapted")
    def test_a_study_that_named_base_and_adapter_by_their_paths_goes_on(self) -> None:
        store, found = Store("sqlite:///test.db", "custom"), checked(adapter="adapter")
        pin(store, found)
        header = found.settings.pair.aligned.rpartition("#")[2]
        older = found.settings.updated(Settings.from_flat({"pair.aligned": f"a+./b@local+{'9' * 16}#{header}"}))
        store.keep(StudyAttributes(settings=older))
        pin(store, checked(aligned="./aligned", adapter="./adapter"))
        assert store.attributes.settings == found.settings, "as a study of now"
        other = older.updated(Settings.from_flat({"pair.aligned": f"a+./b@local+{'9' * 16}#{'0' * 16}"}))
        store.keep(StudyAttributes(settings=other))
        with pytest.raises(SettingsChanged, match=r"pair\.aligned: .* there, 'local\+local#"):
            checked(adapter="adapter")
        store.close()

    def test_a_reward_model_that_was_trained_on_in_its_folder_is_another(self, home: Path) -> None:
        before = checked()
        edit(home / "reward", lambda _, t: t.mul_(1.5))
        assert differing(before, checked()) == {"files.reward_model"}

    def test_so_is_one_with_another_chat_template(self, home: Path) -> None:
        before = checked()
        tokenizer = make_tokenizer()
        tokenizer.chat_template += " "
        tokenizer.save_pretrained(home / "reward")
        assert differing(before, checked()) == {"reward.chat_template"}

    @pytest.mark.usefixtures("home")
    def test_another_number_of_ranks_is_named_since_fingerprints_are_by_rank(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ranks, "n_devices", lambda: (2, "core"))
        assert differing(checked(), checked(tensor_parallel=2)) == {"engine.tensor_parallel"}

    @pytest.mark.usefixtures("home")
    def test_answers_that_do_not_depend_on_their_batch_are_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(start, "compute_capability", lambda: (9, 0))
        assert differing(checked(), checked(batch_invariant=True)) == {"engine.batch_invariant"}


@pytest.mark.usefixtures("home")
class TestArithmetic:
    @pytest.fixture
    def avx2(self, monkeypatch: pytest.MonkeyPatch) -> Checked:
        """As a machine without bfloat16 instructions checks it."""
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
        return checked()

    def test_it_suits_the_machine_and_is_said_planned_and_kept(
        self, avx2: Checked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (avx2.settings.engine.arithmetic, avx2.settings.reward.arithmetic) == ("float32", "float32")
        assert avx2.memory is not None
        assert avx2.memory.sentence().endswith("computed in float32")
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        other = checked()
        assert differing(avx2, other) == {"engine.arithmetic", "reward.arithmetic"}
        assert other.memory is not None
        assert avx2.memory.device["weights"] > other.memory.device["weights"]

    def test_a_study_of_another_machine_goes_on_as_it_began_or_is_refused_with_the_option_that_does(
        self, avx2: Checked, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store("sqlite:///test.db", "custom")
        pin(store, avx2)
        store.close()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        there = r"engine\.arithmetic: 'float32' there, 'bfloat16' now.*; --arithmetic float32 goes on as there"
        with pytest.raises(SettingsChanged, match=there):
            checked()
        two = Settings.from_flat(avx2.settings.flat() | {"engine.arithmetic": "float16"})
        of_file = r'\[engine\] arithmetic = "float16" and \[reward\] arithmetic = "float32" in a study file go on'
        assert re.match(of_file, advice_on_changes(two, avx2.settings)), "no option sets one of them alone"
        forced = checked(arithmetic="float32", reward="float32")
        assert differing(avx2, forced) == set()
        again = check_stored("sqlite:///test.db", "custom", lambda _: None, trust_remote_code=False)
        assert differing(avx2, again) == set()

    def test_one_that_cannot_hold_the_weights_is_refused(self) -> None:
        with pytest.raises(StudyError, match=r"arithmetic float16: weights of .*aligned in bfloat16"):
            checked(arithmetic="float16")


@pytest.mark.usefixtures("home")
def test_the_memory_is_planned_anew_with_the_reward_model_loaded_and_a_notebooks_own_tensors_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gib = 1 << 30
    machine = Machine(64 * gib, gpu_free=70 * gib, gpu_total=80 * gib, gpu_held=5 * gib)  # the notebook's
    monkeypatch.setattr(planning, "measure_machine", lambda *_: machine)
    found = checked()
    assert found.memory is not None
    assert found.plan_again is not None
    first = found.memory.device["reward model"]
    assert found.plan_again().device["reward model"] == first, "nothing of ours is loaded yet"
    # a reward model that takes 2 GiB, where some MiB were planned
    machine = Machine(64 * gib, gpu_free=68 * gib, gpu_total=80 * gib, gpu_held=7 * gib)
    again = found.plan_again()
    assert 0 < again.device["reward model"] < first, "its activations are still to come"
    assert again.gpu_memory_utilization is not None
    assert found.memory.gpu_memory_utilization is not None
    assert again.gpu_memory_utilization == pytest.approx(found.memory.gpu_memory_utilization - 2 / 80, abs=0.002)


@pytest.mark.usefixtures("home")
class TestAStudyThatIsOlderThanASetting:
    """It was made as there was no choice yet: it goes on so, and in no other way."""

    @pytest.mark.parametrize(
        ("key", "other", "named"),
        [
            ("reward.backend", {"backend": "vllm"}, "'transformers' there, 'vllm' now"),
            ("engine.batch_invariant", {"batch_invariant": True}, "False there, True now"),
        ],
    )
    def test_goes_on_as_it_was_made_alone(
        self, key: str, other: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(start, "compute_capability", lambda: (9, 0))
        now = checked()
        self.keep(now, Settings.from_flat({k: v for k, v in now.settings.flat().items() if k != key}))
        assert checked().settings == now.settings
        with pytest.raises(SettingsChanged, match=rf"{re.escape(key)}: {named}"):
            checked(**other)

    def test_is_not_told_to_go_on_by_its_arithmetic_alone_where_more_is_another(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(start, "compute_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
        now = checked()
        flat = {key: value for key, value in now.settings.flat().items() if key != "engine.batch_invariant"}
        self.keep(now, Settings.from_flat(flat))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        with pytest.raises(SettingsChanged, match="drop the differing options"):
            checked(batch_invariant=True)

    def keep(self, found: Checked, settings: Settings) -> None:
        store = Store("sqlite:///test.db", "custom")
        pin(store, replace(found, settings=settings))
        store.close()


def test_a_setting_of_a_table_that_a_study_never_had_is_not_made_up() -> None:
    """Its answers were another model's, or its rewards another scorer's."""
    kept = Settings.from_flat({"pair.reward_model": "a function", "engine.dtype": "auto"})
    assert kept.flat_as_of_now() == kept.flat() | {"engine.batch_invariant": False}


@pytest.mark.usefixtures("home")
class TestRewardBackend:
    def test_it_is_a_setting_that_a_study_keeps(self) -> None:
        store = Store("sqlite:///test.db", "custom")
        pin(store, checked())
        store.close()
        with pytest.raises(SettingsChanged, match=r"reward\.backend: 'transformers' there, 'vllm' now"):
            checked(backend="vllm")
        again = check_stored("sqlite:///test.db", "custom", lambda _: None, trust_remote_code=False)
        assert again.spec.reward.backend == "transformers"

    def test_the_plan_of_an_engine_has_its_process_and_the_keys_and_values_of_a_batch(self) -> None:
        plain, served = checked().memory, checked(backend="vllm").memory
        assert plain is not None
        assert served is not None
        # a tiny model's 16,384 tokens hardly count beside torch and vllm themselves
        more = served.device["reward model"] - plain.device["reward model"]
        assert 1.5 * 2**30 < more < 2 * 2**30


class TestAnotherFolder:
    """A study that was searched by relative paths, used from elsewhere."""

    @pytest.fixture
    def url(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        url = f"sqlite:///{home / 'test.db'}"
        store = Store(url, "custom")
        pin(store, checked())
        store.close()
        (home / "elsewhere").mkdir()
        monkeypatch.chdir(home / "elsewhere")
        return url

    def again(self, url: str, name: str = "custom") -> Checked:
        return check_stored(url, name, lambda _: None, trust_remote_code=False)

    def test_takes_what_is_not_there_from_where_it_was_searched(self, url: str, home: Path) -> None:
        shutil.copytree(home / "reward", "reward")
        found = self.again(url).spec
        assert (found.pair.aligned, found.pair.sft) == (str(home / "aligned"), str(home / "sft"))
        assert found.prompts.source == str(home / "prompts.jsonl")
        assert found.pair.reward_model == "reward", "it is here"
        kept = stored_attributes(url, "custom") or StudyAttributes()
        assert kept.spec is not None
        assert (kept.spec["pair"]["aligned"], kept.folder) == ("aligned", str(home))

    def test_is_told_the_folder_when_it_is_searched_on(self, url: str, home: Path) -> None:
        store = Store(url, "custom")
        pin(store, self.again(url))
        assert store.attributes.folder == str(home / "elsewhere")
        store.close()
        assert self.again(url).pair.sft.path == home / "sft"

    def test_of_an_older_version_finds_what_lies_here_alone(self, url: str) -> None:
        kept, old = stored_attributes(url, "custom"), Store(url, "old")
        assert kept is not None
        assert kept.settings is not None
        assert kept.spec is not None
        old.pin_settings(kept.settings, kept.spec)
        old.close()
        with pytest.raises(PromptsError, match=r"prompts prompts\.jsonl: no such file"):
            self.again(url, "old")


def test_each_path_of_a_stored_spec_is_found_and_names_of_ones_own_model_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("aligned", "adapter", "sft", "my/judge", "other", "second", "p.jsonl")
    for name in names:
        (tmp_path / "there" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    pair = {"aligned": "aligned", "adapter": "adapter", "sft": "sft", "check_reward_model": "second"}
    rewards = ["my/judge", "../there/other", "on/the-hub"]
    overrides: dict[str, Any] = {"pair": pair | {"reward_model": rewards}, "prompts": {"source": "p.jsonl"}}
    spec = load_study(overrides=overrides)
    there = str(tmp_path / "there")
    found = found_from_here(spec, there)
    for role in ("aligned", "adapter", "sft"):
        assert getattr(found.pair, role) == f"{there}/{role}"
    assert (found.pair.check_reward_model, found.prompts.source) == (f"{there}/second", f"{there}/p.jsonl")
    assert [entry.model for entry in found.rewards] == [f"{there}/my/judge", f"{there}/other", "on/the-hub"]
    assert found_from_here(spec, there, own_model=False).pair.aligned == "aligned"
    assert found_from_here(spec, None) == spec
