"""lm-evaluation-harness, a package of other people's checkers and tasks: version, definitions, scores of samples.

Some of its metrics are of all items at once. Of a perplexity an item's value is its log-likelihood, with the number of
its words or bytes where it is of those; of the others (F1, BLEU) it is what the metric is computed from, which scores
no item.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.bench.task import Metric
from expo_search.errors import StudyError
from expo_search.inputs.own_function import content_hash
from expo_search.store.bench_store import Score, Scores

if TYPE_CHECKING:
    from lm_eval.api.task import Task

INSTALL = 'pip install "expo-search[bench]"'
# Of a configuration: what is kept beside it (version and shots), and where it and its rows lie, which are summed up
_KEPT_BESIDE = {"metadata", "num_fewshot", "dataset_path", "dataset_name", "dataset_kwargs"}
_FIRST = ("acc_norm", "acc", "exact_match")  # metrics of which the first that a task has decides, by its first filter
# Perplexities: what their log-likelihoods are of. The first is a number, the others pairs (log-likelihood, units)
_UNITS = {"perplexity": "item", "word_perplexity": "word", "byte_perplexity": "byte", "bits_per_byte": "byte"}
# A metric's name among the scores, where it is not its own: earlier versions kept the negative of this one under it
_NAMES = {"perplexity": "log_likelihood"}
_OF_ALL_ITEMS = frozenset(
    {"f1", "mcc", "brier_score", "likelihood", "bleu", "chrf", "chrf++", "ter", "acc_all", "bypass"}
)


def need_harness(task: str, *modules: str) -> str:
    """The installed version, as settings name it, where lm-eval and these further modules can be imported.

    Raises:
        StudyError: one of them is not installed.
    """
    missing = [name for name in ("lm_eval", *modules) if find_spec(name) is None]
    if missing:
        raise StudyError(
            where=f"task {task}",
            found=f"no {', '.join(missing)}",
            expected="lm-evaluation-harness, whose checkers it takes",
            do=INSTALL,
        )
    return f"lm-eval {version('lm_eval')}"


def rows_digest(rows: Iterable[Any]) -> str:
    """16 hex digits of a data set's rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def definition_digest(tasks: Mapping[str, Task]) -> str:
    """16 hex digits of how tasks ask and score: their configurations, functions and shots.

    Functions count by the files that they are in, so that what they call there is noticed too.
    """
    told = []
    for name, task in tasks.items():
        config = task.config.to_dict(keep_callable=True).items()
        defined = {key: value for key, value in config if key not in _KEPT_BESIDE}
        shots = rows_digest(task.fewshot_docs() or ()) if task.config.num_fewshot else ""
        told.append([name, _plain(type(task)), _plain(defined), shots])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A configuration's value as JSON has it; a function or a class by its name and file, never by its address."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if value is None or isinstance(value, str | int | float):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    try:
        file = inspect.getsourcefile(inspect.unwrap(named))
    except (TypeError, OSError):  # built into Python
        file = None
    return [named.__qualname__, content_hash(Path(file)) if file and Path(file).is_file() else ""]


def scores_of(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Mapping[str, Task]
) -> tuple[dict[str, Scores], list[Metric]]:
    """Item -> its scores, and the metrics that each item has, the deciding one first."""
    scores: dict[str, dict[str, Score]] = {}
    metrics: dict[str, Metric] = {}
    for name, task in tasks.items():
        filters = {str(sample["filter"]) for sample in samples[name]}
        better = task.higher_is_better()
        for sample in samples[name]:
            of_item = scores.setdefault(f"{name}/{sample['doc_id']}", {})
            for metric in sample["metrics"]:
                score = _score(metric, sample[metric], is_better=bool(better.get(metric, True)))
                if score is not None:
                    kept = _metric(metric, "" if len(filters) == 1 else f",{sample['filter']}")
                    of_item[kept.name] = score
                    metrics.setdefault(kept.name, kept)
    common = set.intersection(*(set(of_item) for of_item in scores.values())) if scores else set()
    order = {metric: i for i, metric in enumerate(_FIRST)}
    as_listed = [metrics[metric] for metric in next(iter(scores.values()), {}) if metric in common]
    ordered = sorted(as_listed, key=lambda m: order.get(m.name.partition(",")[0], len(order)))
    return {item: {m.name: of_item[m.name] for m in ordered} for item, of_item in scores.items()}, ordered


def scores_no_item(task: Task) -> bool:
    """Whether all metrics that a task lists are of all items at once; False where only its answers can tell."""
    from lm_eval.api.task import ConfigurableTask

    is_own_rule = type(task).process_results is not ConfigurableTask.process_results
    if is_own_rule or callable(task.config.process_results):
        return False
    of_another_package = any(listed.get("hf_evaluate") for listed in task.config.metric_list or ())
    return not of_another_package and task.higher_is_better().keys() <= _OF_ALL_ITEMS


def _metric(metric: str, ending: str) -> Metric:
    """A metric of the harness as scores and people have it; `ending` names the filter, where there are several."""
    title = f"log-likelihood per {_UNITS[metric]}" if metric in _UNITS else metric
    return Metric(_NAMES.get(metric, metric) + ending, title + ending)


def _score(metric: str, value: object, *, is_better: bool) -> Score | None:
    """A sample's value of a metric, negated where less of it is better. None: no finite number."""
    n_units: object = 1.0
    if metric in _UNITS:
        is_better = True  # what the harness says is of the perplexity
        if isinstance(value, tuple | list) and len(value) == 2:
            value, n_units = value
    if not isinstance(value, Real) or not isinstance(n_units, Real) or not n_units or not math.isfinite(value):
        return None
    score = float(value) / float(n_units)
    return Score(score if is_better else -score, float(n_units))
