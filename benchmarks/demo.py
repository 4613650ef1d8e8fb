"""make bench: the demo search from start to end: wall time, seconds by stage, one switch, peak memory.

Runs the command a user runs, in a folder of its own, and reads what it stored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date

STAGES = ("switch", "generate", "score", "other")


def main() -> None:
    """Run the search and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--pair", options.pair, "--trials", str(options.trials), "--json"]
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "expo_search", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
        )
        wall_s = time.perf_counter() - started
    trials = json.loads(run.stdout)["trials"]
    stages = {k: sum(t[f"{k}_s"] for t in trials) for k in STAGES}
    in_trials = sum(stages.values())
    n_tokens = sum(t["n_generated"] for t in trials)
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{options.pair}, {len(trials)} trials of {trials[0]['n_prompts']} prompts: {wall_s:.0f} s in all")
    print("  " + ", ".join(f"{name} {s:.1f} s" for name, s in stages.items()))
    print(f"  start, canary and end: {wall_s - in_trials:.1f} s")
    print(f"  outside generating and scoring, in trials: {(stages['switch'] + stages['other']) / in_trials:.1%}")
    print(f"  switches: {stages['switch'] / in_trials:.2%} of the trials' time")
    whole = [t["switch_s"] / sum(t[f"{k}_s"] for k in STAGES) for t in trials if t["outcome"] == "complete"]
    print(f"  the switch of a trial of all prompts: {min(whole):.2%} to {max(whole):.2%} of its time")
    slowest = max(t["switch_s"] for t in trials)
    print(f"  one switch: {slowest:.3f} s at most, {stages['switch'] / len(trials):.3f} s on average")
    print(f"  generation: {n_tokens / stages['generate']:.0f} tokens/s")
    print(f"  peak memory of the process: {peak_gb:.2f} GB")


if __name__ == "__main__":
    main()
