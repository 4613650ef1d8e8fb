"""A study, tasks and alphas -> what is to be answered: checked before an engine starts, and against what is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from expo_search.bench.alpaca_judge import checked_judge, judge
from expo_search.bench.harness_task import HarnessTask, is_harness
from expo_search.bench.registry import Data, load_tasks
from expo_search.bench.result import Asked, BenchResult, read_bench
from expo_search.bench.run import Benchmark, Chosen, is_done, run
from expo_search.bench.task import LEAST_ROOM, WrittenTask, generator_name
from expo_search.config.options import OF_BENCH, TaskOptions
from expo_search.config.spec import StudySpec
from expo_search.contracts import Prompt, Request
from expo_search.errors import EngineDied, PromptsError, StudyError
from expo_search.inputs.chat_template import encode_prompt, load_tokenizer
from expo_search.session.preflight import Checked
from expo_search.session.running import Running
from expo_search.store.bench_store import BenchStore
from expo_search.store.study_store import Store
from expo_search.weights.formula import is_alpha

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from expo_search.bench.asking import BenchWatcher


@dataclass(frozen=True)
class Benchmarks:
    """Tasks whose items leave room for an answer, and the alphas at which they are wanted, 0 first.

    `asked` names them as they were typed: a name may be that of several tasks.
    """

    tasks: Sequence[Benchmark]
    alphas: Sequence[float]
    asked: Asked

    def files(self, store: Store) -> dict[str, bytes]:
        """The answers of tasks that another program judges, by the files' place below a folder."""
        bench, files = BenchStore(store), dict[str, bytes]()
        for chosen in self.tasks:
            task = chosen.task if isinstance(chosen, Chosen) else None
            if not isinstance(chosen, Chosen) or not isinstance(task, WrittenTask):
                continue
            for alpha in self.alphas:
                answers = bench.answers(task.name, alpha)
                answered = [(item, answers[item.id]) for item in chosen.items if item.id in answers]
                place, content = task.file(generator_name(store.name, alpha), answered)
                files[place] = content
        return files

    def read(self, store: Store) -> BenchResult:
        """What is stored of them."""
        items = {task.name: set(task.item_ids) for task in self.tasks}
        return read_bench(BenchStore(store), items, self.alphas)

    def checked_judge(self, config: str) -> str:
        """See `alpaca_judge.checked_judge`."""
        return checked_judge(config, self.tasks)

    def judge(self, config: str, store: Store, say: Callable[[str], None]) -> None:
        """Have stored answers judged; see `alpaca_judge.judge`. Needs no engine."""
        with store.owned():
            judge(config, self.tasks, BenchStore(store), store.name, self.alphas, say)

    def check_written(self) -> None:
        """Check that a folder for answers gets some.

        Raises:
            StudyError: no task's answers are written out.
        """
        if not any(isinstance(c, Chosen) and isinstance(c.task, WrittenTask) for c in self.tasks):
            raise StudyError(
                where="--out",
                found=f"tasks that are scored here: {', '.join(task.name for task in self.tasks)}",
                expected="one whose answers another program judges: alpaca_eval or mt_bench",
                do="leave --out out, or add such a task",
            )

    def check_stored(self, store: Store) -> None:
        """Check stored answers against what would be answered now. Writes nothing.

        Raises:
            SettingsChanged: they were made under other settings.
        """
        bench = BenchStore(store)
        for task in self.tasks:
            bench.check(task.name, task.kept())

    def is_done(self, url: str, name: str, *, again: bool) -> bool:
        """Whether each item is done at each alpha, and none is to be made `again`. Writes nothing.

        Raises:
            SettingsChanged: stored answers were made under other settings, and are not to be made again.
        """
        if again:
            return False
        store = Store(url, name, read_only=True)
        try:
            self.check_stored(store)
            bench = BenchStore(store)
            return all(is_done(bench, task, alpha) for task in self.tasks for alpha in self.alphas)
        finally:
            store.close()

    def run(
        self,
        running: Running,
        watcher: BenchWatcher,
        *,
        again: bool,
        stop: Callable[[], bool],
        on_failure: Callable[[EngineDied], None],
    ) -> None:
        """Answer and score what is not yet. Raises as `bench.run.run`."""
        model = running.model  # started first: what it finds of the weights is pinned with the study
        with running.store.owned():
            bench = BenchStore(running.store)
            for task in self.tasks if again else ():
                bench.forget(task.name)
            seed = running.checked.spec.search.seed
            asked = {task.name: asdict(replace(self.asked, n_items=len(task.item_ids))) for task in self.tasks}
            how: dict[str, Any] = {"watcher": watcher, "stop": stop, "on_failure": on_failure}
            run(model, bench, self.tasks, self.alphas, seed=seed, asked=asked, **how)


def prepare(
    checked: Checked,
    names: Sequence[str],
    alphas: Sequence[float],
    *,
    data: Data,
    limit: int | None,
    own_model: bool,
    say: Callable[[str], None],
    options: TaskOptions = OF_BENCH,
) -> Benchmarks:
    """Load the tasks, and leave out the items that are too long for the context, which is said.

    `options` asked for them.

    Raises:
        StudyError: an alpha that makes no weights; a task of the harness where a model of the caller's answers; else
            as `load_tasks`.
        PromptsError: no item of a task leaves room for an answer.
    """
    for alpha in alphas:
        if not is_alpha(alpha):
            raise StudyError(
                where="--alphas", found=f"{alpha}", expected="numbers that are finite in float32", do="give others"
            )
    of_harness = [name for name in names if is_harness(name)]
    if of_harness and not own_model:  # its prompts are tokens, of a tokenizer that is not known; and before data come
        raise StudyError(
            where=options.tasks,
            found=f"{', '.join(of_harness)}, with a model of your own",
            expected="a task whose prompts are texts: the harness asks with an engine of ours alone",
            do=f"leave {'it' if len(of_harness) == 1 else 'them'} out, or open the session without `model`",
        )
    tasks = load_tasks(names, data, limit, options)
    wanted = [0.0, *dict.fromkeys(alpha for alpha in alphas if alpha != 0)]
    asked = Asked(list(names), {task: str(file) for task, file in data.items()}, limit, wanted)
    if not own_model:
        return Benchmarks(tasks, wanted, asked)
    spec = checked.spec
    tokenizer = load_tokenizer(
        str(checked.pair.aligned.path),
        trust_remote_code=spec.trust_remote_code,
        chat_template=spec.pair.chat_template,
    )
    fitting = [
        task.on(tokenizer, spec.engine.max_model_len)
        if isinstance(task, HarnessTask)
        else _fitting(spec, tokenizer, task, say)
        if isinstance(task, Chosen)
        else task
        for task in tasks
    ]
    return Benchmarks(fitting, wanted, asked)


def _fitting(spec: StudySpec, tokenizer: PreTrainedTokenizerBase, chosen: Chosen, say: Callable[[str], None]) -> Chosen:
    """The task with those of its items that fit."""
    length = spec.engine.max_model_len

    def room(prompt: Prompt) -> int:
        return length - len(encode_prompt(tokenizer, prompt))

    def wanted(prompt: Prompt) -> int:
        return prompt.max_tokens if isinstance(prompt, Request) else spec.sampling.max_tokens

    def fits(prompt: Prompt) -> bool:
        return room(prompt) >= min(wanted(prompt), LEAST_ROOM)

    asked = [(item, chosen.task.request(item, ())) for item in chosen.items]
    kept = [(item, request) for item, request in asked if request is None or fits(request)]
    name, n = chosen.task.name, len(asked)
    if not kept:
        raise PromptsError(
            where=f"task {name}",
            found=f"{n} items, none of which leaves room for an answer",
            expected=f"items shorter than the context of {length} tokens",
            do="search the pair with a longer --max-model-len, or take another task",
        )
    if len(kept) < n:
        say(f"{name}: {n - len(kept)} of {n} items left out, too long for the context of {length} tokens")
    n_short = sum(request is not None and room(request) < wanted(request) for _, request in kept)
    if n_short:
        say(f"{name}: the context of {length} tokens may cut {n_short} of {len(kept)} answers short")
    return replace(chosen, items=[item for item, _ in kept], fits=fits)
