"""Bad inputs: for each a way to spoil a good set of files, what is typed, and parts of the line that must come.

`test_bad_input.py` tries them all, and writes `docs/bad-input.md` from what it saw.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from twins import drop, edit, make_reward_model, make_tokenizer

from expo_search.bench import alpaca_judge, harness_package
from expo_search.config.options import overrides
from expo_search.config.presets import load_study
from expo_search.engine import ranks
from expo_search.engine.machine import Machine
from expo_search.pool import cluster
from expo_search.session import planning, preflight
from expo_search.session.preflight import check
from expo_search.session.running import pin
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store

Spoil = Callable[[Path, pytest.MonkeyPatch], None]
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        title: what is wrong.
        typed: the words after `expo-search`.
        said: parts of the one line that must come.
    """

    title: str
    typed: list[str]
    said: list[str]
    spoil: Spoil | None = None


GOOD = {
    "sft": "sft", "aligned": "aligned", "reward-model": "reward", "prompts": "prompts.jsonl", "n-prompts": "4",
    "max-tokens": "8", "max-model-len": "128", "trials": "2",
}  # fmt: skip


def search(**changed: object) -> list[str]:
    """The words of a search with some options changed, or left out where None."""
    options = GOOD | {k.replace("_", "-"): v for k, v in changed.items()}
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def write(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path, _: pytest.MonkeyPatch) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def remove(name: str) -> Spoil:
    def spoil(folder: Path, _: pytest.MonkeyPatch) -> None:
        (folder / name).unlink()

    return spoil


def rename(name: str, other: str) -> Spoil:
    def spoil(folder: Path, _: pytest.MonkeyPatch) -> None:
        (folder / name).rename(folder / other)

    return spoil


def configure(file: str, **values: object) -> Spoil:
    def spoil(folder: Path, _: pytest.MonkeyPatch) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))

    return spoil


def header(entries: dict[str, object], *, length: int | None = None) -> Spoil:
    """The aligned weights replaced by a file with this header and 8 bytes of data."""
    raw = json.dumps(entries).encode()
    prefix = struct.pack("<Q", len(raw) if length is None else length)
    return write("aligned/model.safetensors", prefix + raw + bytes(8))


def data_folder(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "p.jsonl").write_text('{"prompt": "a"}\n')


def cut_off(folder: Path, _: pytest.MonkeyPatch) -> None:
    file = folder / "aligned/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_shape(folder: Path, _: pytest.MonkeyPatch) -> None:
    edit(folder / "sft", lambda name, t: t[:-1].clone() if "norm" in name else t)


def two_labels(folder: Path, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "reward")
    make_reward_model(folder / "reward", labels=2)


def other_reward_model(folder: Path, _: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "reward", folder / "other")
    edit(folder / "other", lambda name, t: -t if "score" in name else t)


def headless_judge(folder: Path, _: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "reward", folder / "judge")
    drop(folder / "judge", "score.weight")


def judge_with_a_list(folder: Path, _: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "reward", folder / "judge")
    edit(folder / "judge", lambda _, t: t * 1.5)
    (folder / "judge" / "trained_on.txt").write_text("What is the capital of France?\n")


def template(text: str | None) -> Spoil:
    def spoil(folder: Path, _: pytest.MonkeyPatch) -> None:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = text
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            (folder / "aligned" / name).unlink(missing_ok=True)
        tokenizer.save_pretrained(folder / "aligned")

    return spoil


def study(name: str, **settings: object) -> Spoil:
    """A study of this name, begun under these settings, in the default database."""

    def spoil(_: Path, __: pytest.MonkeyPatch) -> None:
        store = Store("sqlite:///expo-search.db", name)
        if settings:
            store.pin_settings(
                Settings.from_flat({k.replace("__", "."): v for k, v in settings.items()}), {"name": name}
            )
        store.close()

    return spoil


def tables_of(version: str) -> Spoil:
    """The default database as another version of Optuna would have made it."""

    def spoil(folder: Path, patch: pytest.MonkeyPatch) -> None:
        study("another")(folder, patch)
        connection = sqlite3.connect("expo-search.db")
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.commit()
        connection.close()

    return spoil


def with_study(spoil: Spoil) -> Spoil:
    def both(folder: Path, patch: pytest.MonkeyPatch) -> None:
        study("mine")(folder, patch)
        spoil(folder, patch)

    return both


def pipe(folder: Path, patch: pytest.MonkeyPatch) -> None:
    study("mine")(folder, patch)
    os.mkfifo(folder / "pipe")


def small_memory(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planning, "measure_machine", lambda *_: Machine(host_free=1 << 30))


def two_cores(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranks, "n_devices", lambda: (2, "core"))


def four_cores(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranks, "n_devices", lambda: (4, "core"))


def no_vllm(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(preflight, "find_spec", lambda _: None)


def no_ray(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster, "find_spec", lambda _: None)


def entry(start: int, stop: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


def begun(_: Path, __: pytest.MonkeyPatch) -> None:
    """A study of the good files, of which no trial is finished."""
    options = {name.replace("-", "_"): value for name, value in GOOD.items() if name != "trials"}
    spec = load_study(overrides=overrides(options), name="begun")
    store = Store("sqlite:///expo-search.db", "begun")
    pin(store, check(spec, "sqlite:///expo-search.db", lambda _: None))
    store.close()


def without_template(folder: Path, patch: pytest.MonkeyPatch) -> None:
    begun(folder, patch)
    template(None)(folder, patch)


def no_harness(folder: Path, patch: pytest.MonkeyPatch) -> None:
    begun(folder, patch)
    patch.setattr(harness_package, "find_spec", lambda _: None)


def with_items(text: str) -> Spoil:
    """A study that was begun, and a file of a benchmark's items."""

    def spoil(folder: Path, patch: pytest.MonkeyPatch) -> None:
        begun(folder, patch)
        (folder / "items.jsonl").write_text(text)

    return spoil


def with_judge_missing(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with_items('{"instruction": "?"}\n')(folder, patch)
    patch.setattr(alpaca_judge, "find_spec", lambda _: None)


def bench(*words: str) -> list[str]:
    return ["bench", "begun", "--alphas", "0.1", *words]


PAIR = '[pair]\naligned = "aligned"\nsft = "sft"\nreward_model = "reward"\n'
PARTS = (
    '[pair.parts]\npackage = "p"\nversion = "1"\nfile = "p/m.gguf"\n'
    f'sha256 = "{"0" * 64}"\naligned_adapter = "demo/aligned"\nreward_adapter = "demo/reward"\n'
)
READ_ONLY = "sqlite:///file:expo-search.db?mode=ro&uri=true"
STUDY = ["--study", "mine.toml"]

CASES = [
    # options
    Case("no trials", ["--trials", "0"], ["--trials: 0; expected at least 1; see `expo-search --help`"]),
    Case("a number that is not allowed before a file that is not there", ["--study", "none.toml", "--n-prompts", "0"],
         ["--n-prompts: prompts.n: 0; expected at least 2"]),
    Case("a confirmation on one prompt", search(sft="./missing", confirm=1), ["--confirm: 1; expected at least 2"]),
    Case("a confirmation on no prompts", ["confirm", "--n-prompts", "0"], ["--n-prompts: 0; expected at least 2"]),
    Case("a confirmation of shapes on no prompts", ["shape", "--confirm", "0"], ["--confirm: 0; expected at least 2"]),
    Case("no prompts to reproduce", ["reproduce", "nowhere", "--n-prompts", "0"],
         ["--n-prompts: 0; expected at least 2"]),
    Case("no engines before a study that is not there", ["bench", "--engines", "0"],
         ["--engines: '0'; expected auto, or at least 1"]),
    Case("a time without a unit", search(time="2"), ["--time: 2", "a time above 0 with its unit", "2h, 90m or 1h30m"]),
    Case("no time at all", search(time="0s"), ["--time: 0s", "a time above 0"]),
    Case("tokens that are no number", search(tokens="many"), ["--tokens: many", "3M, 250k or 40000"]),
    Case("no tokens at all", search(tokens="0k"), ["--tokens: 0k", "a number of tokens above 0"]),
    Case("a range upside down", search(alpha_min=2, alpha_max=1), ["alpha_min 2 is not below alpha_max 1"]),
    Case("a bound that is not finite", search(alpha_max="inf"),
         ["search.alpha_max: 'inf'; expected a finite number or auto"]),
    Case("a bound that is no number", search(alpha_max="wide"),
         ["search.alpha_max: 'wide'; expected a number or auto"]),
    Case("an unknown sampler", search(sampler="magic"),
         ["search.sampler: 'magic'; expected expo, gp, tpe, grid or random"]),
    Case("an unknown dtype", search(dtype="int8"), ["engine.dtype: 'int8'; expected auto, bfloat16,"]),
    Case("a negative temperature", search(temperature=-1), ["sampling.temperature: -1.0; expected at least 0"]),
    Case("answers of no tokens", search(max_tokens=0), ["--max-tokens: sampling.max_tokens: 0; expected at least 1"]),
    Case("no room for a prompt", search(max_tokens=128), ["max_tokens 128 in a context of 128"]),
    Case("a context longer than the checkpoint's", search(max_model_len=1024),
         ["max_model_len 1024", "whose context holds 512 tokens", "--max-model-len 512"]),
    Case("no room for an answer in the context that a checkpoint allows",
         search(max_tokens=2048, max_model_len=None),
         ["max_tokens 2048", "a context of 512 tokens", "--max-tokens 4"]),
    Case("an arithmetic that cannot hold the weights", search(arithmetic="float16"),
         ["arithmetic float16", "in bfloat16", "--arithmetic bfloat16 or float32"]),
    Case("one prompt", search(n_prompts=1), ["prompts.n: 1; expected at least 2"]),
    Case("a negative seed", search(seed=-1), ["search.seed"]),
    Case("more ranks than devices", search(tensor_parallel=64), ["--tensor-parallel 64: 2 cores"], two_cores),
    Case("ranks that do not share the heads", search(tensor_parallel=3),
         ["4 attention heads", "--tensor-parallel 2 or 4"], four_cores),
    Case("no GPU at all", search(tensor_parallel=0), ["engine.tensor_parallel"]),
    Case("a study name that is a path", search(study_name="../x"), ["name: '../x'; expected at most 100 letters"]),
    Case("a log in a folder that is not there", search(log="no/where.log"), ["--log no/where.log"]),
    Case("a command that is not there", ["shwo"], ["no command 'shwo'", "did you mean `expo-search show`?"]),
    Case("the search by a name", ["serach"], ["no command 'serach'", "the search has no name: expo-search --pair"]),
    Case("a preset in the place of a command", ["zephyr"],
         ["command line: no command 'zephyr'", "expo-search --pair zephyr"]),
    Case("an option that is not there", ["compare", "--alhpas", "0"],
         ["expo-search compare: no option --alhpas", "did you mean --alphas?"]),
    Case("no number where one must be", search(trials="many"), ["--trials: 'many'; expected a whole number"]),
    Case("a number out of its range", ["dashboard", "--port", "-1"],
         ["--port: -1; expected at least 0; see `expo-search dashboard --help`"]),
    Case("an option without its value", ["show", "--storage"],
         ["--storage: no value; expected one after it; see `expo-search show --help`"]),
    Case("a search's option before a command", ["--json", "show"], ["--json: given before `show`"]),
    Case("a database of SQLite with a slash too few", ["show", "--storage", "sqlite://x.db"],
         ["a URL that begins with sqlite://; expected sqlite:///; write sqlite:///x.db"]),
    Case("a server's database as other programs name it", ["show", "--storage", "postgres://me@localhost/x"],
         ["write postgresql+psycopg://me@localhost/x"]),
    Case("a word too many", ["show", "demo", "zephyr"], ["unexpected extra argument", "zephyr"]),
    Case("a shape that there is not", ["shape", "begun", "--shape", "width"],
         ["--shape: 'width'; expected depth, attn-mlp, or blocks:K"], begun),
    Case("more blocks than layers", ["shape", "begun", "--shape", "blocks:4"],
         ["--shape blocks:4: 2 layers; expected a checkpoint with one stack of at least 4 layers"], begun),
    Case("no shapes", ["shape", "--trials", "0"], ["--trials: 0; expected at least 1; see `expo-search shape --help`"]),
    Case("a shape of no alpha", ["shape", "begun"],
         ["--shape depth of study begun: Only alpha = 0", "expected an alpha that is better than 0"], begun),
    Case("a shape beside an alpha", ["export", "begun", "--out", "new", "--shape", "depth", "--alpha", "1"],
         ["--shape: --alpha beside it; expected one of the two"], begun),
    Case("no folder to reproduce", ["reproduce"], ["DIR_OR_JSON: nothing; expected an exported folder"]),
    Case("an exported folder that is not there", ["reproduce", "nowhere"], ["nowhere: no such file; expected an expo"]),
    Case("an empty checkpoint", search(aligned=""),
         ["--aligned: ", "an empty name (found ''); expected a folder or a Hub id"]),
    Case("a reward model beside a scorer", search(scorer="mine.py:score"), ["--reward-model reward: mine.py:score"]),
    Case("options but no pair", ["--trials", "3"], ["--trials: no pair", "--pair NAME"]),
    Case("options before a command", ["--storage", "sqlite:///a.db", "show"], ["--storage: given before `show`"]),
    Case("a pair beside a study file of another", ["--pair", "demo", *STUDY], ["--pair demo", "preset = 'zephyr'"],
         write("mine.toml", 'preset = "zephyr"\n')),
    Case("a temperature that vLLM does not take", search(temperature=2.5),
         ["sampling.temperature: 2.5; expected at most 2"]),
    Case("a temperature that vLLM would change", search(temperature=0.001),
         ["sampling.temperature: too near to 0 (found 0.001); expected 0, or 0.01 to 2"]),
    Case("an empty stop string", STUDY, ["pair.stop_strings.1: ''; expected a text that is not empty"],
         write("mine.toml", PAIR + 'stop_strings = ["a", ""]\n')),
    Case("several values at once", search(seed=-1, temperature=-1), ["search.seed", "sampling.temperature"]),
    # study files and presets
    Case("an unknown preset", ["--pair", "zefyr"], ["unknown preset 'zefyr'", "did you mean --pair zephyr?"]),
    Case("an unknown preset in a study file", STUDY, ["mine.toml: unknown preset 'zefyr'", "did you mean zephyr?"],
         write("mine.toml", 'preset = "zefyr"\n')),
    Case("a preset in capitals", ["--pair", "DEMO"], ["unknown preset 'DEMO'", "did you mean --pair demo?"]),
    Case("a preset whose code is not trusted", ["--pair", "internlm2-7b"], ["code in its repository", "--trust"]),
    Case("a study file that is missing", ["--study", "none.toml"], ["none.toml", "no such file"]),
    Case("a study file that is not TOML", STUDY, ["mine.toml", "TOML"], write("mine.toml", "[pair\n")),
    Case("a study file that is not text", STUDY, ["mine.toml", "utf-8"], write("mine.toml", b"\xff\xfe")),
    Case("an unknown key", STUDY, ["search.alfa_max: no such setting (alpha_max?)"],
         write("mine.toml", PAIR + "[search]\nalfa_max = 1\n")),
    Case("an unknown table", STUDY, ["serach: no such setting (search?)"],
         write("mine.toml", PAIR + "[serach]\nseed = 1\n")),
    Case("a number with a fraction for a whole one", STUDY, ["mine.toml: prompts.n: 3.5; expected a whole number"],
         write("mine.toml", PAIR + "[prompts]\nn = 3.5\n")),
    Case("a word for a number", STUDY, ["sampling.temperature: 'warm'; expected a number"],
         write("mine.toml", PAIR + '[sampling]\ntemperature = "warm"\n')),
    Case("a number for a word", STUDY, ["prompts.source: 3; expected a text"],
         write("mine.toml", PAIR + "[prompts]\nsource = 3\n")),
    Case("a key that is left empty", STUDY, ["mine.toml: pair.sft_revision: ''; expected a text that is not empty"],
         write("mine.toml", PAIR + 'sft_revision = ""\n')),
    Case("a name that is left empty", STUDY, ["mine.toml: pair.adapter: an empty name (found ''); expected a folder"],
         write("mine.toml", PAIR + 'adapter = ""\n')),
    Case("a value for a table", STUDY, ["search: 3; expected a table"], write("mine.toml", "search = 3\n" + PAIR)),
    Case("a preset that is no name", STUDY, ["preset: 3"], write("mine.toml", "preset = 3\n")),
    Case(
        "a path out of the studies folder", STUDY, ["pair.parts.aligned_adapter"],
        write("mine.toml", PARTS.replace("demo/aligned", "../../etc")),
    ),
    Case("half a pair", search(sft=None), ["pair", "no sft"]),
    # checkpoints
    Case("a path that is no folder", search(sft="./missing"), ["sft ./missing", "no such folder"]),
    Case("a hub that is not reached", search(sft="nobody/nothing"), ["nobody/nothing, file config.json", "local"]),
    Case("a Hub name that leaves its cache", search(sft="nobody/.."), ["sft nobody/.."]),
    Case("no config", search(), ["sft checkpoint", "no config.json"], remove("sft/config.json")),
    Case("a config that is not JSON", search(), ["config.json", "a JSON object"], write("aligned/config.json", "{")),
    Case(
        "pickled weights only", search(), ["no safetensors (pytorch_model.bin)", "save_pretrained"],
        rename("sft/model.safetensors", "sft/pytorch_model.bin"),
    ),
    Case("no weights", search(), ["aligned checkpoint", "no weights at all"], remove("aligned/model.safetensors")),
    Case("a file that is cut off", search(), ["file model.safetensors", "a whole safetensors file"], cut_off),
    Case("an empty file", search(), ["a file of 0 bytes"], write("aligned/model.safetensors", "")),
    Case("a header longer than its file", search(), ["a header of 1099511627776"], header({}, length=2**40)),
    Case("tensors that overlap", search(), ["tensor b at bytes 4..8, after one that ends at 8"],
         header({"a": entry(0, 8, 2), "b": entry(4, 8, 1)})),
    Case("a shape that is not its size", search(), ["tensor a of F32 [1000000000, 1000000000]"],
         header({"a": entry(0, 8, 10**9, 10**9)})),
    Case("a shard that is missing", search(), ["files not in the folder: gone.safetensors"],
         write(f"aligned/{INDEX}", '{"weight_map": {"a": "gone.safetensors"}}')),
    Case("a shard outside the folder", search(), ["files not in the folder: ../sft/model.safetensors"],
         write(f"aligned/{INDEX}", '{"weight_map": {"a": "../sft/model.safetensors"}}')),
    Case("other shapes", search(), ["5 tensors that do not match", "model.norm.weight: aligned [128]"], other_shape),
    Case("another architecture", search(), ["architecture Mistral", "LlamaForCausalLM"],
         configure("sft/config.json", architectures=["MistralForCausalLM"])),
    Case("a quantised checkpoint", search(), ["a quantised checkpoint (gptq)"],
         configure("aligned/config.json", quantization_config={"quant_method": "gptq"})),
    Case("a reward model as the aligned one", search(aligned="reward"),
         ["LlamaForSequenceClassification, a model that scores or embeds text"]),
    Case("no tokenizer", search(), ["tokenizer of"], remove("aligned/tokenizer.json")),
    Case("no chat template", search(), ["no chat template", "[pair] table"], template(None)),
    Case("a broken chat template", search(), ["chat template of", "TemplateSyntaxError"], template("{% for")),
    Case("code of another repository", [*search(), "--trust-remote-code"], ["code of another repository (a/b--c.D)"],
         configure("aligned/config.json", auto_map={"AutoConfig": "a/b--c.D"})),
    # reward model
    Case("a reward model with two labels", search(), ["2 labels", "1 (a scalar reward)"], two_labels),
    Case("a language model as the reward model", search(reward_model="sft"),
         ["LlamaForCausalLM, a language model: it has no score head"]),
    Case("a reward model without a config", search(), ["reward model", "config.json"], remove("reward/config.json")),
    Case("a pickled reward model", search(), ["no safetensors (pytorch_model.bin)", "save_pretrained"],
         rename("reward/model.safetensors", "reward/pytorch_model.bin")),
    # what rates in its place
    Case("nothing that rates", search(reward_model=None),
         ["reward: nothing that rates answers; expected a reward_model in [pair], or a scorer here"]),
    Case("a reward model twice", [*search(), "--reward-model", "reward"],
         ["reward: reward twice; expected reward models that differ"]),
    Case("a reward model twice under two names", [*search(), "--reward-model", "./reward/"],
         ["reward model ./reward/: the same weights as reward", "leave one of the two out"]),
    Case("several reward models, and one that is a language model", [*search(), "--reward-model", "sft"],
         ["sft: LlamaForCausalLM, a language model"]),
    Case("several reward models, and one that is not there", [*search(), "--reward-model", "./judge"],
         ["one of the reward models ./judge: no such folder"]),
    Case("a scorer beside several reward models", [*search(scorer="false"), "--reward-model", "sft"],
         ["reward: a scorer beside several reward models; expected one of the two"]),
    Case("one reward model to combine", search(combine_rewards="worst-case"),
         ["reward: combine_rewards 'worst-case' with one reward model; expected several"]),
    Case("several reward models combined in no known way",
         [*search(combine_rewards="least"), "--reward-model", "sft"],
         ["search.combine_rewards: 'least'; expected mean or worst-case"]),
    Case("an array of one reward model", STUDY,
         ["reward: one reward model in an array; expected two or more"],
         write("mine.toml", '[pair]\naligned = "aligned"\nsft = "sft"\n[[reward]]\nmodel = "reward"\n')),
    Case("several reward models in a file beside the pair's one", STUDY,
         ["reward: several reward models beside reward_model in [pair]; expected one of the two"],
         write("mine.toml", '[pair]\naligned = "aligned"\nsft = "sft"\nreward_model = "reward"\n'
               '[[reward]]\nmodel = "reward"\n[[reward]]\nmodel = "other"\n')),
    Case("a second judge that is one of the search's own",
         [*search(check_reward_model="other"), "--reward-model", "other"],
         ["--check-reward-model other: one of the reward models that the search uses"], other_reward_model),
    Case("a scorer's file that is not there", search(reward_model=None, scorer="mine.py:score"),
         ["scorer mine.py:score: FileNotFoundError: no such file: mine.py"]),
    Case("a scorer of other arguments", search(reward_model=None, scorer="mine.py:score"),
         ["scorer mine.py:score: a function that cannot be called with two lists"],
         write("mine.py", "def score(answer):\n    return 1\n")),
    Case("a scorer that fails", search(reward_model=None, scorer="mine.py:score"),
         ["scorer mine.py:score: ZeroDivisionError"],
         write("mine.py", "def score(prompts, answers):\n    return [1 / len(a) for a in answers]\n")),
    Case("a scorer that gives too few numbers", search(reward_model=None, scorer="mine.py:score"),
         ["scorer mine.py:score: 1 number for 2 answers"],
         write("mine.py", "def score(prompts, answers):\n    return [0.5]\n")),
    Case("a scorer that is no program", search(reward_model=None, scorer="./rate"),
         ["no program './rate' here or on PATH"]),
    Case("a command that fails", search(reward_model=None, scorer="false"), ["scorer false: exit code 1"]),
    Case("a scorer beside an engine for reward models",
         search(reward_model=None, scorer="false", reward_backend="vllm"),
         ["reward: a scorer beside backend 'vllm'"]),
    Case("half a judge", search(reward_model=None, judge_url="http://localhost:1/v1"),
         ["reward: half a judge; expected judge_url and judge_model"]),
    Case("a judge at no address", search(reward_model=None, judge_url="localhost:8000", judge_model="m"),
         ["reward.judge_url: not the address of a server", "http://HOST:PORT/v1"]),
    Case("a key in a judge's address",
         search(reward_model=None, judge_url="http://me:key@localhost/v1", judge_model="m"),
         ["expected a key in OPENAI_API_KEY"]),
    Case("a judge's server that is not there",
         search(reward_model=None, judge_url="http://127.0.0.1:1/v1", judge_model="m"),
         ["judge m at http://127.0.0.1:1/v1: ConnectionRefusedError", "check the address"]),
    Case("a judge that is to give rewards",
         search(reward_model=None, judge_url="http://127.0.0.1:1/v1", judge_model="m", objective="reward"),
         ["a judge, which gives no reward; expected objective win-rate or length-controlled"]),
    Case("a judge elsewhere that a file names, without consent", STUDY,
         ["a judge on another machine, https://example.org/v1", "--trust-remote-code"],
         write("mine.toml", '[pair]\naligned = "aligned"\nsft = "sft"\n[reward]\njudge_model = "m"\n'
               'judge_url = "https://example.org/v1"\n')),
    Case("a scorer that a file names, without consent", STUDY,
         ["mine.toml: a scorer that runs on this machine (mine.py:score)", "--trust-remote-code"],
         write("mine.toml", '[pair]\naligned = "aligned"\nsft = "sft"\n[reward]\nscorer = "mine.py:score"\n')),
    # prompts
    Case("prompts that are missing", search(prompts="none.jsonl"), ["prompts none.jsonl", "no such file"]),
    Case("prompts in the home folder of nobody", search(prompts="~no-such-user/p.jsonl"),
         ["prompts ~no-such-user/p.jsonl: no such file"]),
    Case("a folder of prompts", search(prompts="data"),
         ["prompts data: a folder", "--prompts data/p.jsonl"], data_folder),
    Case("prompts of another kind", search(prompts="p.csv"), ["a file of another kind"], write("p.csv", "prompt\nhi")),
    Case("a data set that is not reached", search(prompts="nobody/nothing"), ["data set nobody/nothing"]),
    Case("an empty prompts file", search(), ["no rows", "at least one prompt"], write("prompts.jsonl", "\n")),
    Case("prompts that are blank", search(), ["2 rows, none with a prompt (line 1: an empty prompt"],
         write("prompts.jsonl", '{"prompt": ""}\n{"prompt": "\\u0000"}\n')),
    Case("prompts that are not JSON", search(), ["line 2", "not JSON"],
         write("prompts.jsonl", '{"prompt": "a"}\n{oops\n')),
    Case("prompts that are not UTF-8", search(), ["line 1", "bytes that are not UTF-8"],
         write("prompts.jsonl", b'{"prompt": "\xff"}\n')),
    Case("a split of a file", search(prompts_split="train"),
         ["--prompts-split train", "prompts of the file prompts.jsonl"]),
    Case("rows that are no objects", search(), ["line 1: a list"], write("prompts.jsonl", '["a"]\n')),
    Case("rows without a prompt", search(), ["line 1", "columns text", "prompt"],
         write("prompts.jsonl", '{"text": "a"}\n')),
    Case("a Parquet file that is none", search(prompts="p.parquet"), ["not readable as Parquet"],
         write("p.parquet", "PAR1")),
    Case("too few prompts", search(n_prompts=9), ["8 different prompts", "at least 9", "--n-prompts 8"]),
    Case("equal prompts", search(n_prompts=40), ["1 different prompt and 39 duplicates", "at least 40"],
         write("prompts.jsonl", '{"prompt": "a"}\n' * 40)),
    Case("prompts longer than the context", search(n_prompts=2), ["0 prompts, 3 more are too long for the context"],
         write("prompts.jsonl", "".join(json.dumps({"prompt": f"{i} " + "x" * 500}) + "\n" for i in range(3)))),
    # the database
    Case("not a database", search(storage="sqlite:///other.db"), ["not a database"], write("other.db", "hello" * 300)),
    Case("a read-only database", search(storage=READ_ONLY), ["readonly"], study("x")),
    Case("a database in no folder", search(storage="sqlite:///no/where.db"), ["the folder no is missing"]),
    Case("a database in memory", search(storage="sqlite://"), ["a database in memory"]),
    Case("a database file in the place of a URL", search(storage="other.db"),
         ["not a database URL", "write sqlite:///other.db"]),
    Case("not a database URL", search(storage="a:b"), ["not a database URL", "SQLAlchemy"]),
    Case("a home folder in a database URL", ["show", "--storage", "sqlite:///~nobody-here/a.db"],
         ["a ~, which stands for no folder"]),
    Case("an unknown kind of database", search(storage="nosuchdb://me:secret@host/db"), ["nosuchdb", "me:***@host"]),
    Case("a database whose driver is not installed", search(storage="postgresql+pg8000://me:secret@host/db"),
         ["No module named 'pg8000'", "me:***@host", 'pip install "expo-search[postgres]"']),
    Case("a database server that is not there", search(storage="postgresql+psycopg://me:secret@127.0.0.1:1/db"),
         ["Connection refused", "me:***@127.0.0.1", "PGPASSWORD"]),
    Case("artifacts in an unknown kind of place", search(artifacts="gs://bucket/x"), ["neither a folder nor a bucket"]),
    Case("artifacts in a file", search(artifacts="prompts.jsonl"), ["--artifacts", "File exists", "can be written to"]),
    Case("tables of an older Optuna", search(), ["tables of an older Optuna", "optuna storage upgrade"],
         tables_of("v0.9.0.a")),
    Case("tables of a newer Optuna", search(), ["tables of a newer Optuna", "pip install -U"], tables_of("v99.0.a")),
    Case("other settings than the study's", search(), ["sampling.max_tokens: 99 there, 8 now", "--study-name"],
         study("custom", sampling__max_tokens=99, search__seed=42)),
    Case("no database yet", ["show"], ["sqlite:///expo-search.db: no such file", "a database with a study in it"]),
    Case("no study yet", ["show"], ["no study named", "a database with a study in it"], write("expo-search.db", "")),
    Case("an unknown study", ["show", "yours"], ["no study 'yours'", "mine"], study("mine")),
    Case("a confirmation of an unknown study", ["confirm", "yours"], ["no study 'yours'", "mine"], study("mine")),
    Case("a study that is not ours", ["confirm", "theirs"], ["no settings of expo-search"], study("theirs")),
    Case("an export to nowhere", ["export", "mine"], ["--out", "give --out DIR"], study("mine")),
    Case("shards of a size without a unit", ["export", "mine", "--out", "new", "--max-shard-size", "5"],
         ["--max-shard-size: '5'; expected a size such as 5GB"], study("mine")),
    Case("an export in place of a file", ["export", "mine", "--out", "notes.txt", "--force"],
         ["something else than an exported folder"], with_study(write("notes.txt", "mine"))),
    Case("an export of alpha = 0", ["export", "--out", "new", "--alpha", "0"], ["the aligned checkpoint itself"],
         study("mine")),
    Case("an alpha to compare that float32 cannot hold", ["compare", "mine", "--alphas", "0,1e39"],
         ["--alphas: '1e39'", "float32"], study("mine")),
    Case("no prompt to compare at", ["compare", "-n", "0"], ["-n: 0; expected at least 1"]),
    Case("an empty prompt to compare at", ["compare", "--prompt", ""], ["--prompt: an empty text; expected a prompt"]),
    Case("prompts to compare at beside a number of them", ["compare", "-n", "2", "--prompt", "x"],
         ["-n: -n beside --prompt; expected one of the two"]),
    Case("more prompts to compare at than there are", ["compare", "mine", "-n", "9"],
         ["-n 9: 0 prompts in study mine", "a study that was searched"], study("mine")),
    Case("an alpha to chat at that is no number", ["chat", "mine", "--alpha", "nan"], ["--alpha: nan"], study("mine")),
    Case("a page in place of another file", ["report", "mine", "--out", "notes.txt", "--force"],
         ["--out notes.txt: a file that is no page of ours"], with_study(write("notes.txt", "mine"))),
    # benchmarks
    Case("a benchmark of an unknown study", ["bench", "yours"], ["no study 'yours'", "mine"], study("mine")),
    Case("a benchmark of a study without a winner", ["bench", "begun"],
         ["no finished trial but alpha = 0", "search first"], begun),
    Case("an unknown task", bench("--tasks", "basics,gsmk8"), ["--tasks: unknown task 'gsmk8'", "gsm8k"], begun),
    Case("no task", bench("--tasks", ","), ["--tasks: nothing", "ifeval"], begun),
    Case("an alpha that float32 cannot hold at a benchmark", ["bench", "begun", "--alphas", "1e39"],
         ["--alphas: '1e39'", "float32"], begun),
    Case("an unknown task of a search", search(bench="gsmk"), ["--bench: unknown task 'gsmk'", "did you mean gsm8k?"]),
    Case("no task of a search", search(bench=","), ["--bench: nothing", "give --bench A,B"]),
    Case("no items of a search's task", search(bench="basics", bench_limit=-1), ["--bench-limit: -1", "at least 1"]),
    Case("data without a task of a search", search(bench="basics", bench_data="foo"),
         ["--bench-data: 'foo'", "TASK=FILE"]),
    Case("data of another task of a search", search(bench="basics", bench_data="gsm8k=items.jsonl"),
         ["--bench-data gsm8k=items.jsonl: data of a task that is not asked for", "add the task to --bench"]),
    Case("a search's task's data that are no file", search(bench="gsm8k", bench_data="gsm8k=no.jsonl"),
         ["--bench-data gsm8k=no.jsonl: no such file"]),
    Case("data of no task of a search", search(bench_data="gsm8k=items.jsonl"), ["--bench-data: no --bench"]),
    Case("a limit of no task of a search", search(bench_limit=4), ["--bench-limit: no --bench; expected --bench A,B"]),
    Case("data of a task that has its own", bench("--data", "basics=prompts.jsonl"),
         ["--data basics=prompts.jsonl: data of a task that has items of its own", "leave it out"], begun),
    Case("a benchmark of a model whose chat template is gone", bench(),
         ["no chat template", "[pair] table"], without_template),
    Case("no items", bench("--limit", "0"), ["--limit: 0; expected at least 1"]),
    Case("a task's data that are no file", bench("--tasks", "gsm8k", "--data", "gsm8k=no.jsonl"),
         ["--data gsm8k=no.jsonl: no such file"], begun),
    Case("data without a task", bench("--data", "items.jsonl"), ["--data: 'items.jsonl'", "TASK=FILE"], begun),
    Case("data of another task", bench("--data", "gsm8k=items.jsonl"), ["a task that is not asked for"], begun),
    Case("a task's data without the columns", bench("--tasks", "alpaca_eval", "--data", "alpaca_eval=items.jsonl"),
         ["line 1: columns prompt", "instruction (text)"], with_items('{"prompt": "?"}\n')),
    Case("a task whose data set is not reached", bench("--tasks", "alpaca_eval"),
         ["data set tatsu-lab/alpaca_eval", "--data alpaca_eval=FILE"], begun),
    Case("a task that needs a package that is not there", bench("--tasks", "gsm8k"),
         ["task gsm8k: no lm_eval", 'pip install "expo-search[bench]"'], no_harness),
    Case("a scorer that is not there", bench("--tasks", "mine:rate", "--data", "mine:rate=items.jsonl"),
         ["scorer mine:rate: ModuleNotFoundError", "module:function"], with_items('{"prompt": "?"}\n')),
    Case("items that are longer than the context",
         bench("--tasks", "alpaca_eval", "--data", "alpaca_eval=items.jsonl"),
         ["1 items, none of which leaves room", "128 tokens"],
         with_items(json.dumps({"instruction": "x" * 500}) + "\n")),
    Case("a folder for answers of tasks that are scored here", bench("--out", "answers"),
         ["--out: tasks that are scored here: basics", "alpaca_eval or mt_bench"], begun),
    Case("a guardrail of no task", STUDY, ["guardrails.bench: unknown task 'gsmk8'", "did you mean gsm8k?"],
         write("mine.toml", PAIR + "[prompts]\nsource = \"prompts.jsonl\"\n[guardrails.bench]\ngsmk8 = 0.02\n")),
    Case("a guardrail of several tasks", STUDY, ["lm_eval:openllm, whose tasks are", "as lm_eval:openllm/gsm8k"],
         write("mine.toml", PAIR + '[prompts]\nsource = "prompts.jsonl"\n[guardrails.bench]\n"lm_eval:openllm" = 1\n')),
    Case("a judge of nothing", bench("--judge", "gpt4"), ["--judge gpt4: the tasks basics", "alpaca_eval"], begun),
    Case("a judge that is not there",
         bench("--tasks", "alpaca_eval", "--data", "alpaca_eval=items.jsonl", "--judge", "gpt4"),
         ["--judge gpt4: no alpaca_eval", 'pip install "expo-search[judge]"'], with_judge_missing),
    Case("a folder for a trial's answers that is a file", ["show", "mine", "--answers", "prompts.jsonl"],
         ["--answers prompts.jsonl: ", "a folder"], study("mine")),
    Case("a page in place of a pipe", ["report", "mine", "--out", "pipe", "--force"],
         ["--out pipe: something that is no file"], pipe),
    Case("the same checkpoint twice", search(sft="aligned"), ["aligned and sft hold the same weights"]),
    Case("a second judge that is the search's own", search(check_reward_model="./reward/"),
         ["--check-reward-model ./reward/: the reward model that the search uses", "expected another one"]),
    Case("a second judge that is a language model", search(check_reward_model="aligned"),
         ["reward model", "LlamaForCausalLM, a language model: it has no score head"]),
    Case("a second judge without its score head", search(check_reward_model="judge"),
         ["judge: no weights for score.weight"], headless_judge),
    Case("a second judge whose list of prompts is none", search(check_reward_model="judge"),
         ["trained_on.txt, line 1: 'What is the capital", "SHA-256"], judge_with_a_list),
    Case("a second judge that is not there", search(check_reward_model="./judge"),
         ["check reward model ./judge: no such folder"]),
    # the machine
    Case("sources on a GPU that is not there", search(sources="gpu"), ["--sources gpu: no GPU"], small_memory),
    Case("a pair that does not fit in memory", search(arithmetic="bfloat16"), ["1.0 GiB free", "sources"],
         small_memory),
    Case("no vLLM", search(), ["vllm: not installed", "pip install"], no_vllm),
    Case("a tracker that is unknown", search(track="mlfow"), ["--track mlfow", "did you mean mlflow"]),
    Case("engines that are no number", search(engines="all"), ["--engines: 'all'; expected auto, or at least 1"]),
    Case("no engine at all", search(engines=0), ["--engines: '0'; expected auto, or at least 1"]),
    Case("more engines than GPUs or cores", search(engines=3), ["2 cores on 1 node", "--engines 2 or fewer"],
         two_cores),
    Case("many engines without Ray", search(engines=2), ["no Ray", 'pip install "expo-search[ray]"'], no_ray),
    Case("a cluster that is not there", search(ray_address="127.0.0.1:1"), ["it cannot be reached", "refused"]),
    Case("a cluster's address that is none", search(ray_address="ray://head:10001"), ["no HOST:PORT", "port 6379"]),
]  # fmt: skip

# too long for the table, or with a version in the line
LONG_NAME = "x" * 300
LONG_CASES = [
    Case("an export under too long a name", ["export", "mine", "--out", LONG_NAME], ["--out xxx", "File name too long"],
         study("mine")),
    Case("a page under too long a name", ["report", "mine", "--out", LONG_NAME], ["--out xxx", "File name too long"],
         study("mine")),
    Case("an exported folder with too long a name", ["reproduce", LONG_NAME], ["not readable", "File name too long"]),
    Case("shards of infinite size", ["export", "mine", "--out", "new", "--max-shard-size", "9" * 400 + "GB"],
         ["--max-shard-size: '999"], study("mine")),
    Case("an expo.json of other types", ["reproduce", "expo.json"],
         ["expo.json: a file without alpha, trial", "settings: not a table (found [])"],
         write("expo.json", '{"format": 1, "settings": []}')),
]  # fmt: skip
