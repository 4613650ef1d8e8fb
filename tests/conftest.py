"""Settings of every test: no Hub, no spinning threads (one core must be enough); hypothesis tries the same examples.

`HYPOTHESIS_RANDOM=1` tries others, as one does to look for faults, and not where a change is to be judged.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize="HYPOTHESIS_RANDOM" not in os.environ)
settings.load_profile("same")

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
