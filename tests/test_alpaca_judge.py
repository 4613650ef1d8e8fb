"""Win rates over alpha = 0 by a judge of `alpaca_eval`, for which a package with its `evaluate` stands here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from bench_fakes import Recording, TurnsTask, YesModel

from expo_search.bench.alpaca_eval import AlpacaEval
from expo_search.bench.alpaca_judge import checked_judge, judge
from expo_search.bench.result import read_bench
from expo_search.bench.run import Chosen, is_done, run
from expo_search.errors import StudyError
from expo_search.store.bench_store import BenchStore
from expo_search.store.study_store import Store

# prefers the longer answer; knows nothing of what is asked about rain, or of anything; fails where it is told to; as
# the package does, it finds a folder that is not whole beside its own judges
PACKAGE = """
import json, pathlib
def evaluate(model_outputs, reference_outputs, annotators_config, caching_path, annotation_kwargs, **options):
    assert caching_path is None and annotation_kwargs == {"is_ordered": True}
    assert options["output_path"] is None and options["precomputed_leaderboard"] is None
    folder = pathlib.Path(__file__).parent / "evaluators_configs" / annotators_config
    (folder / "configs.yaml").read_text()
    if annotators_config == "broken":
        raise OSError("no key")
    said = []
    for at, zero in zip(model_outputs, reference_outputs):
        assert at["instruction"] == zero["instruction"] and zero["generator"] == "s_a0.0"
        longer = len(at["output"]) - len(zero["output"])
        preference = 1.5 if not longer else 2 if longer > 0 else 1
        knows = "rain" not in at["instruction"] and annotators_config != "silent"
        said.append({"preference": preference if knows else None})
    pathlib.Path(__file__).with_name("asked.json").write_text(json.dumps(len(said)))
    return None, said
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site" / "alpaca_eval"
    for name in ("longest", "broken", "silent"):
        (folder / "evaluators_configs" / name).mkdir(parents=True)
        (folder / "evaluators_configs" / name / "configs.yaml").write_text("")
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "alpaca_eval", raising=False)
    return folder


@pytest.fixture
def chosen(tmp_path: Path) -> Chosen:
    file = tmp_path / "items.jsonl"
    rows = [{"instruction": f"About {what}?"} for what in ("trees", "rain", "bread", "wind", "stone")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = AlpacaEval({"alpaca_eval": file})
    return Chosen(task, task.items)


@pytest.fixture
def store(tmp_path: Path, chosen: Chosen) -> BenchStore:
    """Answers at three alphas: the fake's JSON, longer the more digits the alpha has."""
    store = BenchStore(Store(f"sqlite:///{tmp_path / 'b.db'}", "s"))
    run(YesModel(), store, [chosen], [0.0, 0.25, 1.0], seed=0, watcher=Recording())
    return store


@pytest.mark.usefixtures("package")
def test_the_win_rate_is_over_alpha_0_on_the_same_instructions(
    store: BenchStore, chosen: Chosen, package: Path
) -> None:
    said: list[str] = []
    assert list(read_bench(store).compared) == [], "answers without a judge are compared with nothing"
    judge("longest", [chosen], store, "s", [0.0, 0.25, 1.0], said.append)
    at, even = read_bench(store).compared
    assert (at.alpha, at.metric, at.n, at.mean, at.control) == (0.25, "win_rate", 4, 1.0, 0.5)
    assert (even.alpha, even.mean, even.word) == (1.0, 0.5, "no evidence of a loss")
    assert at.sentence().startswith("AlpacaEval +50.0 [")
    assert [line for line in said if "without" in line] == [
        "alpaca_eval: 1 of 5 answers without a judgement, left out"
    ] * 2
    assert is_done(store, chosen, 0.25)
    assert json.loads((package / "asked.json").read_text()) == 5


@pytest.mark.usefixtures("package")
def test_what_was_judged_is_not_asked_again_but_by_another_judge(
    store: BenchStore, chosen: Chosen, package: Path
) -> None:
    judge("longest", [chosen], store, "s", [0.0, 0.25], lambda _: None)
    before = read_bench(store)
    judge("longest", [chosen], store, "s", [0.0, 0.25], lambda _: None)
    assert json.loads((package / "asked.json").read_text()) == 1, "only the one without a judgement"
    assert read_bench(store).compared == before.compared
    judge(str(package / "evaluators_configs" / "longest"), [chosen], store, "s", [0.0, 0.25], lambda _: None)
    assert json.loads((package / "asked.json").read_text()) == 5


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("another", ["broken", "silent"])
def test_scores_that_were_paid_for_stay_until_another_judge_has_answered(
    store: BenchStore, chosen: Chosen, another: str
) -> None:
    judge("longest", [chosen], store, "s", [0.0, 0.25, 1.0], lambda _: None)
    before = read_bench(store)
    with pytest.raises(StudyError, match="no key") if another == "broken" else nullcontext():
        judge(another, [chosen], store, "s", [0.0, 0.25], lambda _: None)
    assert read_bench(store) == before
    assert store.settings("alpaca_eval")["judge"] == "longest"


def test_no_score_of_one_judge_is_under_the_name_of_another(store: BenchStore, chosen: Chosen, package: Path) -> None:
    """Neither where the other one fails later, nor at an alpha that it is not asked about."""
    judge("longest", [chosen], store, "s", [0.0, 0.25, 1.0], lambda _: None)
    other = str(package / "evaluators_configs" / "longest")
    said: list[str] = []

    def lose_its_key(line: str) -> None:
        said.append(line)
        if "alpha = 1 " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(other, [chosen], store, "s", [0.0, 0.25, 1.0], lose_its_key)
    assert store.settings("alpaca_eval")["judge"] == other
    assert f"alpaca_eval: the scores of {other} take the place of those of longest" in said
    assert [c.alpha for c in read_bench(store).compared] == [0.25]


def test_a_folder_is_a_judge_wherever_it_is_typed_from(
    store: BenchStore, chosen: Chosen, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "configs.yaml").write_text("")
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in ("mine", "./mine/", "site/../mine", "~/mine", "linked"):
        whole = checked_judge(typed, [chosen])
        judge(whole, [chosen], store, "s", [0.0, 0.25], lambda _: None)
        n_asked = json.loads((package / "asked.json").read_text())
        assert n_asked == (5 if typed == "mine" else 1), "spelled otherwise it is the same"
    assert store.settings("alpaca_eval")["judge"] == str(tmp_path / "mine")
    (tmp_path / "longest").symlink_to(tmp_path / "mine")
    assert checked_judge("longest", [chosen]) == "longest", "the package's own is meant, as the package has it"


@pytest.mark.usefixtures("package")
def test_a_judge_that_fails_leaves_the_answers(store: BenchStore, chosen: Chosen) -> None:
    with pytest.raises(StudyError, match=r"--judge broken: OSError: no key; expected a judge that answers"):
        judge("broken", [chosen], store, "s", [0.0, 0.25], lambda _: None)
    assert is_done(store, chosen, 0.25)
    judge("longest", [chosen], store, "s", [0.0, 0.25], lambda _: None)
    assert [c.n for c in read_bench(store).compared] == [4]


def test_what_is_missing_is_said_before_anything_starts(
    chosen: Chosen, package: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked_judge("longest", [chosen]) == "longest"
    with pytest.raises(StudyError, match=r"--judge magic: no such judge; expected one of broken, longest"):
        checked_judge("magic", [chosen])
    task = TurnsTask()
    with pytest.raises(StudyError, match=r"the tasks turns; expected alpaca_eval among them"):
        checked_judge("longest", [Chosen(task, task.items)])
    find: Callable[[str], None] = lambda _: None  # noqa: E731
    monkeypatch.setattr("expo_search.bench.alpaca_judge.find_spec", find)
    with pytest.raises(StudyError, match=r'no alpaca_eval; .*pip install "expo-search\[judge\]"'):
        checked_judge("longest", [chosen])
