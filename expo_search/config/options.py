"""The search command's options that are settings of a study file, in one table.

The command's signature, what it lays over a study file, and the command that repeats a study are all made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

DEFAULT_STORAGE = "sqlite:///expo-search.db"
DEFAULT_SHAPES = 12
DEFAULT_TRIALS = 20
TRIALS_OF_A_BUDGET = 200  # which ends before, as a rule
MIN_PROMPTS = 2  # of anything that is measured: one prompt has no standard error


class TaskOptions(NamedTuple):
    """The options that name tasks, their files and a limit, as messages call them."""

    tasks: str = "--tasks"
    data: str = "--data"
    limit: str = "--limit"


OF_BENCH = TaskOptions()
OF_SEARCH = TaskOptions("--bench", "--bench-data", "--bench-limit")


@dataclass(frozen=True)
class Option:
    """One option: the setting that it overrides, and how it is shown.

    Attributes:
        table, key: of the study file.
        kind: str, int, float or bool; a bool has a `--no-` form.
        name: of the flag, where it is not the key's.
        also: further tables whose setting of that key it overrides.
        panel: where the help shows it, if not where its table is.
        repeats: it may be given several times; the setting is then a list.
    """

    table: str
    key: str
    kind: type
    help: str
    metavar: str | None = None
    name: str = ""
    also: tuple[str, ...] = ()
    panel: str = ""
    repeats: bool = False

    @property
    def parameter(self) -> str:
        """Its name in Python."""
        return self.name or self.key

    @property
    def flag(self) -> str:
        """As it is typed: `--max-tokens`."""
        return f"--{self.parameter.replace('_', '-')}"


# where the help shows a table's options
PANELS = {"pair": "Pair", "prompts": "Prompts", "sampling": "Prompts", "search": "Search", "reward": "Engine"}
PANELS |= {"engine": "Engine"}
_MODEL = "PATH_OR_ID"
OPTIONS = (
    Option("pair", "sft", str, "The SFT checkpoint.", _MODEL),
    Option("pair", "aligned", str, "The checkpoint aligned from the SFT one.", _MODEL),
    Option("pair", "adapter", str, "A LoRA adapter: aligned is then --aligned with it merged in.", _MODEL),
    Option(
        "pair", "reward_model", str, "A sequence classifier with one label; several: again, or as [[reward]].", _MODEL,
        repeats=True,
    ),
    Option("search", "combine_rewards", str, "Of several: mean, or worst-case, the least of them.", panel="Pair"),
    Option(
        "reward", "scorer", str, "In the place of a reward model: module:function, FILE.py:function or a command.",
        "SCORER", panel="Pair",
    ),
    Option(
        "reward", "judge_url", str, "Or a server with OpenAI's interface, http://localhost:8000/v1.", "URL",
        panel="Pair",
    ),
    Option(
        "reward", "judge_model", str, "The model there, which compares answers with alpha = 0's.", "NAME", panel="Pair"
    ),
    Option("pair", "check_reward_model", str, "A second judge: another reward model, for the winner.", _MODEL),
    Option("prompts", "source", str, "JSONL or Parquet file, or Hub data set.", "FILE_OR_DATASET", "prompts"),
    Option("prompts", "split", str, "Of a Hub data set, the split.", "SPLIT", "prompts_split"),
    Option("prompts", "n", int, "Prompts of the search.", None, "n_prompts"),
    Option("sampling", "max_tokens", int, "New tokens of an answer at most."),
    Option("sampling", "temperature", float, "Sampling temperature."),
    Option("search", "alpha_min", str, "Lower end of the range.", "FLOAT|auto"),
    Option("search", "alpha_max", str, "Upper end of the range.", "FLOAT|auto"),
    Option("search", "objective", str, "reward, win-rate or length-controlled."),
    Option("search", "sampler", str, "expo, gp, tpe, grid or random."),
    Option("search", "racing", bool, "Stop a trial once it cannot win."),
    Option("search", "tolerance", float, "End once going on should gain less than this share of the gain; 0: never."),
    Option("search", "seed", int, "Fixes prompts' order, answers and sampler."),
    Option("reward", "backend", str, "What runs the reward model: transformers or vllm.", None, "reward_backend"),
    Option("engine", "dtype", str, "Of the weights: auto (the checkpoint's), bfloat16, float16 or float32."),
    Option(
        "engine", "arithmetic", str, "What engine and reward model multiply in; auto suits the machine.",
        "DTYPE|auto", also=("reward",),
    ),
    Option("engine", "max_model_len", int, "Context in tokens."),
    Option("engine", "tensor_parallel", int, "GPUs of one engine."),
    Option("engine", "sources", str, "Where a switch reads the two checkpoints from: gpu, host or auto."),
    Option(
        "engine", "timeout_s", float, "Seconds without a token after which the engine starts anew.",
        "S", "engine_timeout",
    ),
    Option("engine", "batch_invariant", bool, "Answers that do not depend on their batch; newer GPUs, slower."),
)  # fmt: skip
_OF_SETTING = {(option.table, option.key): option for option in OPTIONS}


def option_of(table: str, key: str) -> Option | None:
    """The option that overrides a setting, if there is one."""
    return _OF_SETTING.get((table, key))


def overrides(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by parameter, None where one is not given -> table -> key -> value, as in a study file.

    An option that may be repeated, and is given once, is as any other.
    """
    tables: dict[str, dict[str, Any]] = {}
    for option in OPTIONS:
        value = given.get(option.parameter)
        if option.repeats and isinstance(value, list | tuple):
            value = None if not value else value[0] if len(value) == 1 else list(value)
        if value is not None:
            for table in (option.table, *option.also):
                tables.setdefault(table, {})[option.key] = value
    return tables
