"""Settings of every test: no Hub, no spinning threads; one core must be enough."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
