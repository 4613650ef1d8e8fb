"""A search side by side with what one does today without it: for each alpha of a grid, a checkpoint, a fresh engine.

    python benchmarks/published_way.py                    # the demo pair, alpha = 0 and 3 others of the grid of 20
    python benchmarks/published_way.py --pair zephyr --alphas 0.1,0.2,0.3

Today's way, with today's libraries, each step a process of its own, as its scripts are: extrapolate with transformers
and save; a fresh vLLM on the folder, the same prompts and sampling; score through a transformers pipeline at batch 8.
alpha = 0 is the aligned checkpoint, which nothing is extrapolated for; it is measured once, and what the other measured
alphas took is multiplied to the rest of the grid. Ours: the command, from start to verdict, on the same machine. It
starts once, which is in its total alone: its rows of the steps are switches, generating and rating.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from expo_search.config.presets import load_study
from expo_search.contracts import Prompt
from expo_search.engine.start import engine_settings
from expo_search.session.preflight import Checked, check

STAGES = ("extrapolate", "generate", "score")
NOTES = {
    "extrapolate": "by hand with the start of Python, loading and saving; ours the switches",
    "generate": "by hand with vLLM's start; ours without",
    "score": "by hand with the start of Python and the reward model's loading; ours without",
    "in all": "both with every start",
}
BATCH = 8  # of ExPO's own `evaluate_reward.py`


def extrapolate(job: dict[str, Any]) -> dict[str, float]:
    """Both models into memory, their weights added up, the sum saved, as ExPO's `extrapolate.py` does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    aligned = AutoModelForCausalLM.from_pretrained(job["aligned"], dtype=torch.bfloat16)
    sft = AutoModelForCausalLM.from_pretrained(job["sft"], dtype=torch.bfloat16)
    other = dict(sft.named_parameters())  # tied weights once
    with torch.no_grad():
        for name, weight in aligned.named_parameters():
            weight.copy_(weight + job["alpha"] * (weight - other[name]))
    aligned.save_pretrained(job["model"])
    AutoTokenizer.from_pretrained(job["aligned"]).save_pretrained(job["model"])
    return {"bytes": float(sum(f.stat().st_size for f in Path(job["model"]).iterdir()))}


def generate(job: dict[str, Any]) -> dict[str, float]:
    """A fresh vLLM on the saved folder, which answers all prompts at once."""
    os.environ.update(job["environment"])
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **job["engine"])
    texts = job["prompts"]
    params = [SamplingParams(**job["sampling"], seed=seed) for seed in job["seeds"]]
    outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params, use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    rows = [{"prompt": text, "output": a.text} for text, a in zip(texts, answers, strict=True)]
    Path(job["answers"]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    n_tokens = sum(len(a.token_ids) for a in answers)
    return {"tokens": float(n_tokens), "bytes": float(Path(job["answers"]).stat().st_size)}


def score(job: dict[str, Any]) -> dict[str, float]:
    """The reward model through a transformers pipeline, batches of 8."""
    import torch
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(job["reward_model"])
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[job["reward_dtype"]]
    rate = pipeline(
        "text-classification", model=job["reward_model"], tokenizer=tokenizer, dtype=dtype, device_map="auto"
    )
    rows = [json.loads(line) for line in Path(job["answers"]).read_text(encoding="utf-8").splitlines()]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["output"]}],
            tokenize=False,
        )
        for row in rows
    ]
    texts = [text.removeprefix(tokenizer.bos_token or "") for text in texts]  # the tokenizer writes it itself
    scores = rate(texts, function_to_apply="none", batch_size=BATCH, truncation=True, max_length=job["reward_tokens"])
    return {"reward": statistics.fmean(s["score"] for s in scores)}


def job_of(checked: Checked, alpha: float, folder: Path) -> dict[str, Any]:
    """What one alpha's three processes need to know: pair, prompts, sampling, and the engine's own settings."""
    spec, plan, dtypes = checked.spec, checked.memory, checked.dtypes
    assert plan is not None
    assert dtypes is not None
    environment, settings = engine_settings(
        spec.engine.model_copy(update={"max_num_seqs": plan.max_num_seqs}),
        cuda=plan.gpu_memory_utilization is not None,
        gpu_memory_utilization=plan.gpu_memory_utilization,
    )
    prompts: list[Prompt] = list(checked.search_prompts)
    return {
        "alpha": alpha,
        "aligned": str(checked.pair.aligned.path),
        "sft": str(checked.pair.sft.path),
        "reward_model": str(checked.pair.reward_source.path),
        "reward_dtype": dtypes.reward,
        "reward_tokens": spec.reward.max_tokens,
        "model": str(folder / "model" if alpha else checked.pair.aligned.path),
        "answers": str(folder / "answers.jsonl"),
        "prompts": [p.text for p in prompts],
        "seeds": [p.seed(spec.search.seed) for p in prompts],
        "sampling": {
            **spec.sampling.model_dump(),
            "stop": list(spec.pair.stop_strings),
            "stop_token_ids": list(spec.pair.stop_token_ids),
        },
        "environment": environment,
        "engine": {
            **settings,
            "dtype": dtypes.engine,
            "max_model_len": spec.engine.max_model_len,
            "tensor_parallel_size": spec.engine.tensor_parallel,
            "seed": spec.search.seed,
        },
    }


def published(checked: Checked, alpha: float, log: Path) -> dict[str, dict[str, float]]:
    """The stages at one alpha, at 0 without the first: seconds, and what each wrote or generated."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps(job_of(checked, alpha, Path(folder))), encoding="utf-8")
        measured = {}
        for stage in STAGES if alpha else STAGES[1:]:
            started = time.perf_counter()
            with log.open("a") as out:
                command = [sys.executable, __file__, "--stage", stage, "--job", str(job)]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=out, text=True, check=True)
            told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            measured[stage] = {"seconds": time.perf_counter() - started, **told}
        return measured


def searched(pair: str) -> dict[str, float]:
    """Our search, as a user runs it, to its verdict: the same figures."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "expo_search", "--pair", pair, "--json", "--quiet"],
            cwd=folder, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        result = json.loads(done.stdout)
        trials = result["trials"]
        n_bytes = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    stages = {k: sum(t[f"{k}_s"] for t in trials) for k in ("switch", "generate", "score")}
    print(f"ours: {result['verdict']}, alpha = {result['best_alpha']:.4g}, {len(trials)} trials in {seconds:.1f} s")
    return {
        "extrapolate": stages["switch"],
        "generate": stages["generate"],
        "score": stages["score"],
        "in all": seconds,
        "tokens": float(sum(t["n_generated"] for t in trials)),
        "written": n_bytes / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--grid", type=int, default=20, help="alphas of the published way, with alpha = 0")
    parser.add_argument("--alphas", default="1,3,8", help="those that are measured, beside 0")
    parser.add_argument("--part", choices=("both", "published", "ours"), default="both", help="measure one way alone")
    parser.add_argument("--log", type=Path, default=Path("published_way.log"))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        job = json.loads(options.job.read_text(encoding="utf-8"))
        print("\n" + json.dumps(globals()[options.stage](job)))
        return
    with tempfile.TemporaryDirectory() as folder:
        checked = check(load_study(preset=options.pair), f"sqlite:///{folder}/check.db", lambda _: None)
    n = len(checked.search_prompts)
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores; {options.pair}, {n} prompts", flush=True)
    theirs = None if options.part == "ours" else grid(checked, options)
    ours = None if options.part == "published" else searched(options.pair)
    if theirs is not None and ours is not None:
        for name, of_grid in theirs.items():
            unit = "GB" if name == "written" else "tokens" if name == "tokens" else "s"
            ratio = of_grid / max(ours[name], 1e-9)
            note = NOTES.get(name, "")
            print(f"  {name:12} {of_grid:10.1f} {unit:6} ours {ours[name]:10.4f}   {ratio:6.1f} x   {note}")


def grid(checked: Checked, options: argparse.Namespace) -> dict[str, float]:
    """What the published way takes for the whole grid: seconds by stage and in all, tokens, GB written."""
    alphas = [0.0, *(alpha for alpha in map(float, options.alphas.split(",")) if alpha)]
    runs = []
    for alpha in alphas:
        runs.append(published(checked, alpha, options.log))
        told = ", ".join(f"{stage} {of['seconds']:.1f} s" for stage, of in runs[-1].items())
        print(f"  alpha {alpha:g}: {told}; mean reward {runs[-1]['score']['reward']:.4f}", flush=True)

    def whole(stage: str, key: str) -> float:
        zero, *others = (run.get(stage, {}).get(key, 0.0) for run in runs)
        return float(zero + (options.grid - 1) * statistics.fmean(others))

    found = {stage: whole(stage, "seconds") for stage in STAGES}
    found["in all"] = sum(found.values())
    found["tokens"] = whole("generate", "tokens")
    found["written"] = sum(whole(stage, "bytes") for stage in STAGES) / 1e9
    print(f"the published way, alpha = 0, and {len(alphas) - 1} others multiplied to {options.grid - 1}: "
          + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))  # fmt: skip
    return found


if __name__ == "__main__":
    main()
