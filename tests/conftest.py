"""Settings of every test: no Hub, no spinning threads (one core must be enough); hypothesis tries the same examples.

`HYPOTHESIS_RANDOM=1` tries others, as one does to look for faults, and not where a change is to be judged.
"""

import os
import signal

from hypothesis import settings

settings.register_profile("same", derandomize="HYPOTHESIS_RANDOM" not in os.environ)
settings.load_profile("same")

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: commands that tests stop would not
    signal.signal(signal.SIGINT, signal.default_int_handler)
