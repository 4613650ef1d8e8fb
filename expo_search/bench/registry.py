"""Names of tasks -> tasks, with the items that are wanted; a name that is none is refused with the nearest ones."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from expo_search.bench.alpaca_eval import AlpacaEval
from expo_search.bench.basics import Basics
from expo_search.bench.data import check_file
from expo_search.bench.gsm8k import N_SHOTS, SHOTS, Gsm8k
from expo_search.bench.harness_task import CHAT_PREFIX, LEADERBOARD, PREFIX, is_harness, load_harness
from expo_search.bench.ifeval import WITHOUT_PUNKT, Ifeval
from expo_search.bench.mt_bench import MtBench
from expo_search.bench.own_task import OwnTask, is_own
from expo_search.bench.run import Benchmark, Chosen
from expo_search.bench.task import Task
from expo_search.config.options import OF_BENCH, TaskOptions
from expo_search.errors import PromptsError, StudyError

Data = Mapping[str, Path]  # files in the place of the Hub, by the task's name
TASKS: Mapping[str, Callable[[Data], Task]] = {
    "basics": lambda _: Basics(),
    "ifeval": lambda data: Ifeval("ifeval", data),
    WITHOUT_PUNKT: lambda data: Ifeval(WITHOUT_PUNKT, data),
    "alpaca_eval": AlpacaEval,
    "mt_bench": MtBench,
    "gsm8k": lambda data: Gsm8k("gsm8k", 0, data),
    "gsm8k_5shot": lambda data: Gsm8k("gsm8k_5shot", N_SHOTS, data),
}
# Of files that are not only read by the task of their name: the tasks that read them
_READ_BY: Mapping[str, Collection[str]] = {
    "ifeval": ("ifeval", WITHOUT_PUNKT),
    "gsm8k": ("gsm8k", "gsm8k_5shot"),
    SHOTS: ("gsm8k_5shot",),
}


def check_limit(limit: int | None, options: TaskOptions) -> None:
    """Check how many items of each task are wanted.

    Raises:
        StudyError: none.
    """
    if limit is not None and limit < 1:
        raise StudyError(
            where=options.limit, found=str(limit), expected="at least 1", do="give the number of items wanted"
        )


def load_tasks(
    names: Sequence[str], data: Data, limit: int | None = None, options: TaskOptions = OF_BENCH
) -> list[Benchmark]:
    """The tasks of these names, each with its first `limit` items; `options` asked for them.

    Raises:
        StudyError: an unknown task, one that needs what is not installed, data that no task takes, no task at all.
        PromptsError: data that are missing or of another form.
    """
    names = list(dict.fromkeys(names))
    check_names(names, options.tasks)
    check_limit(limit, options)
    _check_data(names, data, options)
    chosen: list[Benchmark] = []
    asked: dict[str, str] = {}
    for name in names:
        if is_harness(name):
            found = load_harness(name, limit, options.tasks)
            for task in found:
                _refuse_named_twice(task.name, asked.setdefault(task.name, name), name, options)
            chosen += found
            continue
        own = OwnTask(name, data) if is_own(name) else TASKS[name](data)
        _refuse_repeated(own)
        items = own.items[:limit]
        if isinstance(own, Ifeval):
            own.check(items)
        chosen.append(Chosen(own, items))
    return chosen


def _refuse_named_twice(task: str, first: str, now: str, options: TaskOptions) -> None:
    """Check that a task's name, under which its answers are kept, is asked for once: two files may share theirs.

    Raises:
        StudyError: it was asked for before.
    """
    if first != now:
        raise StudyError(
            where=options.tasks,
            found=f"{first} and {now}, both of task {task}",
            expected="each task once",
            do="leave one out, or give a file another name",
        )


def _refuse_repeated(task: Task) -> None:
    """Check that no two items have one id: an answer would be both's.

    Raises:
        PromptsError: two have.
    """
    id, n = Counter(item.id for item in task.items).most_common(1)[0]
    if n > 1:
        raise PromptsError(
            where=f"task {task.name}", found=f"{n} items with the id {id}", expected="one", do="give each its own"
        )


def _check_data(names: Sequence[str], data: Data, options: TaskOptions) -> None:
    """Check that each file is of a task that is asked for and reads one, and that it is there."""
    for name, file in data.items():
        where = f"{options.data} {name}={file}"
        if not set(names).intersection(_READ_BY.get(name, (name,))):
            raise StudyError(
                where=where,
                found="data of a task that is not asked for",
                expected=f"one of {', '.join(names)}",
                do=f"check the name, or add the task to {options.tasks}",
            )
        if name == Basics.name or is_harness(name):
            raise StudyError(
                where=where,
                found="data of a task that has items of its own",
                expected="a task that reads a file",
                do="leave it out",
            )
        check_file(file, where)


def known() -> str:
    """The names of tasks, for people."""
    return f"{', '.join(TASKS)}, {PREFIX}NAME, module:function"


def check_names(names: Collection[str], where: str = "--tasks") -> None:
    """Check names alone; those of the harness's tasks are known once it is loaded.

    Raises:
        StudyError: none, or one that is unknown.
    """
    if not names:
        raise StudyError(where=where, found="nothing", expected=f"names of {known()}", do=f"give {where} A,B")
    for name in names:
        if name in TASKS or is_harness(name) or is_own(name):
            continue
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
        raise StudyError(
            where=where,
            found=f"unknown task {name!r}",
            expected=f"one of {', '.join(near)}" if near else f"one of {known()}",
            do=f"did you mean {near[0]}?" if near else "see `expo-search bench --help`",
        )


def check_limits(names: Collection[str]) -> None:
    """Check the names of `[guardrails.bench]`: one of no task would rule nothing out.

    Raises:
        StudyError: one that is unknown, or that stands for several tasks.
    """
    where = "guardrails.bench"
    check_names(names, where)
    for prefix in (PREFIX, CHAT_PREFIX):
        if f"{prefix}{LEADERBOARD}" in names:
            raise StudyError(
                where=where,
                found=f"{prefix}{LEADERBOARD}, whose tasks are compared one by one",
                expected="one of them",
                do=f"name it, as {prefix}{LEADERBOARD}/gsm8k",
            )
