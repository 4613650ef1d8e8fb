"""Tasks of lm-evaluation-harness, `lm_eval:NAME` or a YAML file: its prompts and scores, the live engine's answers.

What the harness scores is read item by item from its samples, so that two alphas are compared on each. `lm_eval_chat:`
puts prompts into the model's chat template; a group is one task, but `openllm`, whose members are compared one by one.

Shots are drawn anew for each alpha with the seed of the harness's own `simple_evaluate`, so that they are the same at
every alpha, and in a run that goes on.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from expo_search.bench.asking import Asking, BenchWatcher
from expo_search.bench.harness_model import LiveRequests, live_model
from expo_search.bench.harness_package import (
    definition_digest,
    need_harness,
    rows_digest,
    scores_no_item,
    scores_of,
)
from expo_search.errors import PromptsError, StudyError
from expo_search.store.bench_store import BenchStore
from expo_search.text import shortened

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

PREFIX, CHAT_PREFIX = "lm_eval:", "lm_eval_chat:"
LEADERBOARD = "openllm"  # a group of unlike tasks, each with a number of shots of its own
# What of a member the leaderboard counts, where that is not all: of TruthfulQA's three tasks this one
_COUNTED = {"truthfulqa": "truthfulqa_mc2"}
_SHOTS_SEED = 1234  # `lm_eval.defaults.DEFAULT_OTHER_SEED`, which `simple_evaluate` sets; `evaluate` alone sets none


@dataclass(frozen=True)
class HarnessTask:
    """A `Benchmark` of the harness: one of its tasks, or a group of them as one.

    Attributes:
        tasks: the harness's own, by name.
        limit: the first items of each. sizes: how many items each has in all.
        digest: of all their items. definition: of how they are asked and scored. 16 hex digits each.
        tokenizer, context: of the model, once it is known.
    """

    name: str
    tasks: Mapping[str, Task]
    limit: int | None
    harness: str
    sizes: Mapping[str, int]
    digest: str
    definition: str
    tokenizer: PreTrainedTokenizerBase | None = None
    context: int = 0

    @property
    def title(self) -> str:
        """Its name in the harness."""
        return self.name.partition(":")[2]

    @property
    def is_chat(self) -> bool:
        """Whether prompts stand in the chat template."""
        return self.name.startswith(CHAT_PREFIX)

    @property
    def item_ids(self) -> Sequence[str]:
        """Of each task's first items: the task's name and the item's number in it."""
        return [
            f"{name}/{i}"
            for name, n in self.sizes.items()
            for i in range(n if self.limit is None else min(n, self.limit))
        ]

    def kept(self) -> Mapping[str, Any]:
        """The harness's version and its tasks', their definitions and numbers of shots."""
        versions = {name: str(task.VERSION) for name, task in self.tasks.items()}
        shots = {name: task.config.num_fewshot for name, task in self.tasks.items() if task.config.num_fewshot}
        made_under = {"title": self.title, "checkers": self.harness, "versions": versions, "data": self.digest}
        return made_under | {"definition": self.definition} | ({"shots": shots} if shots else {})

    def on(self, tokenizer: PreTrainedTokenizerBase, context: int) -> HarnessTask:
        """The same, for a model with this tokenizer and a context of so many tokens."""
        return replace(self, tokenizer=tokenizer, context=context)

    def answer(self, asking: Asking, store: BenchStore, watcher: BenchWatcher) -> None:
        """Have the harness ask and score all of it; what was asked before is answered from the database."""
        requests = LiveRequests(asking, store, watcher, self.title)
        scores, metrics = scores_of(self._samples(requests), self.tasks)
        before = [metric for metric, _ in store.settings(self.name).get("metrics", ())]
        shared = [m for m in metrics if m.name in before] if before else metrics
        if not shared:
            raise StudyError(
                where=f"task {self.name}",
                found="no metric that scores each item at each alpha",
                expected="one such as acc or exact_match",
                do="take another task",
            )
        lost = set(before) - {m.name for m in shared}
        if lost:
            watcher.remark(f"not every item has a number for {', '.join(sorted(lost))}: compared by the others alone")
        there = store.scores(self.name, asking.alpha)
        fresh = {(item, i): of for i, (item, of) in enumerate(scores.items()) if item not in there}
        store.describe(self.name, {"metrics": [[m.name, m.title] for m in shared]})
        store.add(self.name, asking.alpha, {}, fresh)

    def _samples(self, requests: LiveRequests) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What the harness makes of the answers: by task, each item's values of the metrics.

        Raises:
            StudyError: the task fails: its templates, functions and metrics are other people's code.
        """
        from lm_eval.evaluator import evaluate

        assert self.tokenizer is not None, "prepared for a model"
        for task in self.tasks.values():
            task.set_fewshot_seed(_SHOTS_SEED)
        model = live_model(requests, self.tokenizer, self.context)
        try:
            results: Any = evaluate(
                model,
                {"tasks": dict(self.tasks), "groups": {}, "group_map": {}},
                limit=self.limit,
                cache_requests=False,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.is_chat,
                fewshot_as_multiturn=self.is_chat,
            )
        except Exception as fault:
            if requests.failed:  # a stop, or a fault that is no task's
                raise
            logging.getLogger(__name__).exception("the harness failed")  # into the log file, with the traceback
            raise StudyError(
                where=f"task {self.name}",
                found=f"{type(fault).__name__}: {shortened(str(fault))}",
                expected="a task that the harness can ask and score",
                do="see the log file; the answers that came are kept",
            ) from None
        samples: Mapping[str, Sequence[Mapping[str, Any]]] = results["samples"]
        return samples


def is_harness(name: str) -> bool:
    """Whether a task's name is that of one of the harness's."""
    return name.startswith((PREFIX, CHAT_PREFIX))


def load_harness(name: str, limit: int | None, option: str = "--tasks") -> list[HarnessTask]:
    """The tasks of a name with one of the prefixes, which `option` asked for; their data, which the harness fetches.

    Raises:
        StudyError: the harness is not installed, or has no such task; a task that cannot be compared here.
        PromptsError: its data are not to be had.
    """
    harness = need_harness(name)
    prefix = CHAT_PREFIX if name.startswith(CHAT_PREFIX) else PREFIX
    wanted = name.removeprefix(prefix)
    is_file = wanted.endswith((".yaml", ".yml"))
    manager = _manager(with_index=not is_file)
    members = {} if is_file else _leaderboard(manager)
    known = [*manager.all_tasks, *members]
    if not is_file and wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        raise StudyError(
            where=option,
            found=f"unknown task {name!r}",
            expected=f"one of {', '.join(prefix + n for n in near)}" if near else "a task of lm-evaluation-harness",
            do=f"did you mean {prefix}{near[0]}?" if near else "see `lm-eval ls tasks`, or give a task's YAML file",
        )
    of_leaderboard = list(members) if wanted == LEADERBOARD else [wanted] if wanted in members else []
    try:
        units = {name: _with_shots(manager, *members[name]) for name in of_leaderboard} or {
            _short(wanted): manager.load([wanted])["tasks"]
        }
    except Exception as fault:  # the harness's own errors, YAML's, those of `datasets`, the Hub's, the network's
        raise PromptsError(
            where=f"task {name}",
            found=f"{type(fault).__name__}: {shortened(str(fault))}",
            expected="a task whose data are on the Hub, in its cache or in files",
            do="check the network; a YAML file of one's own may name local data",
        ) from None
    for tasks in units.values():
        _refuse_unfit(name, tasks)
    return [_benchmark(f"{prefix}{unit}", tasks, limit, harness) for unit, tasks in units.items()]


def _refuse_unfit(name: str, tasks: Mapping[str, Task]) -> None:
    """Refuse what would end in an error once the engine has started.

    Raises:
        StudyError: a task that runs the code that is answered, that shows pictures, or that scores no item.
    """
    for task_name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            found, expected = "runs code that the model writes", "one that only reads its answers"
        elif getattr(task, "MULTIMODAL", False):
            found, expected = "has pictures or sound", "one of text"
        elif scores_no_item(task):
            found = f"has no metric that scores each item: it lists {', '.join(task.higher_is_better()) or 'none'}"
            expected = "one such as acc or exact_match"
        else:
            continue
        raise StudyError(where=f"task {name}", found=f"{task_name} {found}", expected=expected, do="take another task")


@cache
def _manager(*, with_index: bool) -> TaskManager:
    """The harness's finder of tasks; the index of all its own takes seconds to read, and a file needs none."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_index)


def _leaderboard(manager: TaskManager) -> dict[str, tuple[str, int]]:
    """The leaderboard's members, `openllm/NAME`: the harness's name of each and its number of shots, from its own file.

    The members are loaded by their own names and given their shots. Where the group is loaded as one, the harness
    (0.4.13) gives every task within a member that member's name, of which one is then left: of MMLU a single subject.
    """
    entry = manager.task_index.get(LEADERBOARD)
    listed: Sequence[Mapping[str, Any]] = (entry.cfg or {})["task"] if entry else ()
    members = [(_COUNTED.get(of["task"], of["task"]), int(of["num_fewshot"])) for of in listed]
    return {f"{LEADERBOARD}/{member}": (member, shots) for member, shots in members}


def _with_shots(manager: TaskManager, member: str, shots: int) -> dict[str, Task]:
    """A member's tasks by name. Shots come from where its own file says, which is the leaderboard's split, too."""
    tasks: dict[str, Task] = manager.load([member])["tasks"]
    for task in tasks.values():
        task.set_config("num_fewshot", shots)
    return tasks


def _benchmark(name: str, tasks: Mapping[str, Task], limit: int | None, harness: str) -> HarnessTask:
    """A `HarnessTask` with its items counted and summed up."""
    sizes = dict.fromkeys(tasks, 0)

    def docs() -> Iterator[Any]:
        for task_name, task in tasks.items():
            for doc in task.eval_docs:
                sizes[task_name] += 1
                yield doc

    digest = rows_digest(docs())
    return HarnessTask(name, tasks, limit, harness, sizes, digest, definition_digest(tasks))


def _short(wanted: str) -> str:
    """A task's name: that of a file without its folder and ending."""
    return wanted.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml") or wanted
