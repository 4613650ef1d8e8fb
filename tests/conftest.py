"""Settings of every test: no Hub, no proxy, no spinning threads (one core must be enough); hypothesis tries the same.

`HYPOTHESIS_RANDOM=1` tries others, as one does to look for faults, and not where a change is to be judged.
"""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from databases import MariaDbServer, PostgresServer, has_mariadb, postgres_binaries
from hypothesis import settings

settings.register_profile("same", derandomize="HYPOTHESIS_RANDOM" not in os.environ)
settings.load_profile("same")

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # these three as the command line sets them
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before the first test module imports numpy
if (n_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    # Threads of two workers on the same cores wait for each other at every barrier: a third of an engine's test.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // n_workers)))
gc.set_threshold(100_000, 50, 100)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # where the tests' own servers are
for name in ("EXPO_SEARCH_CACHE", "XDG_CACHE_HOME"):  # tests say where the cache folder is without them
    os.environ.pop(name, None)
# The files that take minutes come first, the longest in front: at the end no worker is alone with one of them.
LONGEST = tuple(
    f"test_{name}.py"
    for name in (
        "materializer", "pool", "engines", "end_to_end", "kill_harness", "docs", "reproduce", "one_line", "hub_upload",
        "stop_command", "engine_faults", "pool_nodes", "vllm_version", "notebook",
    )
)  # fmt: skip
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: commands that tests stop would not
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _scripts_read_once() -> Iterator[None]:
    """Alembic reads its scripts, those of Optuna's tables, once and not for each new database.

    They are the same files, and reading them is two thirds of a database's making.
    """
    of_config, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in known:
            known[place] = of_config(config)
        return known[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", read_once)
        yield


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair, aligned and sft, and a reward model, made once: tests copy them."""
    from twins import make_pair, make_reward_model

    folder = tmp_path_factory.mktemp("tiny")
    make_pair(folder, "llama-tied", delta=0.2)
    make_reward_model(folder / "reward")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, one for each process of the suite, started when it is first wanted."""
    if postgres_binaries() is None:
        pytest.skip("no PostgreSQL server is installed: neither on PATH nor under /usr/lib/postgresql")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDbServer]:
    """A MariaDB server, one for each process of the suite."""
    server = MariaDbServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql", *(["mariadb"] if has_mariadb() else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is new: for what holds on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    server: PostgresServer | MariaDbServer = request.getfixturevalue(
        "postgres" if request.param == "postgresql" else "mariadb"
    )
    return server.database()
