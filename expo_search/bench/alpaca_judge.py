"""AlpacaEval's own judge on answers at two alphas -> win rates over alpha = 0, item by item.

The package `alpaca_eval` and a judge that it can reach are the user's: a name of its configurations, or a folder with
one. The reference is alpha = 0's own answer to the same instruction, not another model's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from expo_search.bench.alpaca_eval import AlpacaEval
from expo_search.bench.run import Benchmark, Chosen
from expo_search.bench.task import Metric, generator_name
from expo_search.errors import StudyError
from expo_search.folders import is_there, path_in, user_path
from expo_search.store.bench_store import BenchStore, Score, Scores
from expo_search.text import shortened

WIN_RATE = Metric("win_rate", "win rate over alpha = 0")
_EVEN = Score(0.5)  # alpha = 0 against itself


def checked_judge(config: str, tasks: Sequence[Benchmark]) -> str:
    """Check, before anything starts, that there is something to judge, the package and this judge of it.

    `config`: as people type it; returned as `judge` takes it: the package's own name, or a folder's whole path, since
    the package would look for another one below its own folder.

    Raises:
        StudyError: one of them is missing.
    """
    if _task(tasks) is None:
        raise StudyError(
            where=f"--judge {config}",
            found=f"the tasks {', '.join(task.name for task in tasks)}",
            expected="alpaca_eval among them",
            do="add it to --tasks, or leave --judge out",
        )
    spec = find_spec("alpaca_eval")
    if spec is None or spec.origin is None:
        raise StudyError(
            where=f"--judge {config}",
            found="no alpaca_eval",
            expected="the package that has the judges",
            do='pip install "expo-search[judge]", or leave --judge out: the answers are kept',
        )
    names = sorted(p.parent.name for p in (Path(spec.origin).parent / "evaluators_configs").glob("*/configs.yaml"))
    if config in names:
        return config
    folder = user_path(config)
    file, expected = folder / "configs.yaml", f"one of {', '.join(names[:3])}, ..., or a folder with a configs.yaml"
    if not is_there(file, StudyError, where=f"--judge {config}", expected=expected) or not file.is_file():
        raise StudyError(
            where=f"--judge {config}",
            found="no such judge",
            expected=expected,
            do="see alpaca_eval's evaluators_configs",
        )
    return path_in(Path.cwd(), str(folder))


def judge(
    config: str, tasks: Sequence[Benchmark], store: BenchStore, study: str, alphas: Sequence[float],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Judge the stored answers at each alpha against those at alpha = 0, and keep what comes of it as scores.

    What this judge has judged already is not asked again. Another judge's scores, which may have been paid for, are
    dropped at every alpha, but not before this one has judged something.

    Raises:
        StudyError: the judge fails.
    """
    chosen = _task(tasks)
    assert chosen is not None, "checked_judge"
    before = store.settings(chosen.name).get("judge")
    is_in_place = before is not None and _is_same(before, config)
    zero = store.answers(chosen.name, 0.0)
    for alpha in alphas:
        at = store.answers(chosen.name, alpha)
        done = store.scores(chosen.name, alpha) if is_in_place else {}
        items = [
            item
            for item in chosen.items
            if item.id in at and item.id in zero and WIN_RATE.name not in done.get(item.id, {})
        ]
        if alpha == 0 or not items:
            continue
        say(f"{chosen.name}: {config} judges {len(items)} answers at alpha = {alpha:.4g} against those at 0")
        rows = [
            [
                {"instruction": item.row["instruction"], "output": given[item.id][0].text, "generator": name}
                for item in items
            ]
            for given, name in ((at, generator_name(study, alpha)), (zero, generator_name(study, 0.0)))
        ]
        preferences = _preferences(config, *rows)
        n_none = sum(preference is None for preference in preferences)
        if n_none:
            say(f"{chosen.name}: {n_none} of {len(items)} answers without a judgement, left out")
        if n_none == len(items):
            continue
        if not is_in_place:
            _put_in_place(config, before, store, chosen.name, say)
            is_in_place = True
        store.rescore(chosen.name, 0.0, {item: {WIN_RATE.name: _EVEN} for item in zero})
        scores: dict[str, Scores] = {
            item.id: {} if preference is None else {WIN_RATE.name: Score(preference - 1)}
            for item, preference in zip(items, preferences, strict=True)
        }
        store.rescore(chosen.name, alpha, scores)


def _put_in_place(config: str, before: str | None, store: BenchStore, task: str, say: Callable[[str], None]) -> None:
    """Make a task's scores those of a judge, with none yet, where they were none's or those of the one before."""
    if before is not None:
        say(f"{task}: the scores of {config} take the place of those of {before}")
        for alpha in store.tasks().get(task, ()):  # first: whatever ends this, none is under another judge's name
            store.rescore(task, alpha, {item: {} for item in store.scores(task, alpha)})
    store.describe(task, {"metrics": [[WIN_RATE.name, WIN_RATE.title]], "judge": config})


def _is_same(judge: str, other: str) -> bool:
    """Whether two judges are one: the same name, or a folder by one path or another."""
    if not (Path(judge).is_absolute() and Path(other).is_absolute()):
        return judge == other
    return os.path.realpath(judge) == os.path.realpath(other)


def _task(tasks: Sequence[Benchmark]) -> Chosen | None:
    return next((t for t in tasks if isinstance(t, Chosen) and isinstance(t.task, AlpacaEval)), None)


def _preferences(config: str, at: Sequence[dict[str, str]], zero: Sequence[dict[str, str]]) -> list[float | None]:
    """1 where alpha = 0's answer is preferred, 2 where the other is, or between; None where the judge says nothing."""
    from alpaca_eval import evaluate

    try:
        _, annotations = evaluate(
            model_outputs=list(at),
            reference_outputs=list(zero),
            annotators_config=config,
            output_path=None,
            precomputed_leaderboard=None,
            is_cache_leaderboard=False,
            is_return_instead_of_print=True,
            fn_metric="get_winrate",
            sort_by="win_rate",
            annotation_kwargs={"is_ordered": True},
            caching_path=None,  # its cache of judgements lies inside the package
        )
    except Exception as fault:  # the judge's, the network's, those of somebody's configuration
        raise StudyError(
            where=f"--judge {config}",
            found=f"{type(fault).__name__}: {shortened(str(fault))}",
            expected="a judge that answers",
            do="check its key and address; the answers are kept, the same command without --again judges them",
        ) from None
    if len(annotations) != len(at):
        raise StudyError(
            where=f"--judge {config}",
            found=f"{len(annotations)} judgements of {len(at)} answers",
            expected="one an answer",
            do="see the log file",
        )
    found = [annotation.get("preference") for annotation in annotations]
    return [None if p is None or not math.isfinite(p) else float(p) for p in found]
