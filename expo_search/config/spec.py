"""A preset or TOML file, plus command-line overrides -> `StudySpec`: checked, frozen, all faults in one message.

A preset is a study file that ships with the package (`studies/NAME.toml`); a file of one's own has the same tables and
may build on a preset with `preset = "zephyr"` in its first lines. The defaults are the paper's settings (ExPO,
ACL 2025, section 3.1 and its published code).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from expo_search.config.faults import FILLED, NAME, not_allowed
from expo_search.config.options import MIN_PROMPTS
from expo_search.config.several_rewards import apart
from expo_search.dtypes import Asked
from expo_search.errors import StudyError

Name = Annotated[str, Field(pattern=NAME)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Combine = Literal["mean", "worst-case"]


def _inside(path: str) -> str:
    if not re.fullmatch(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*", path):
        raise ValueError("not the plain name of something inside its folder")
    return path


Inside = Annotated[str, AfterValidator(_inside)]


def _named(model: str) -> str:
    if not model.strip():
        raise ValueError("an empty name; expected a folder or a Hub id")
    return model


ModelName = Annotated[str, AfterValidator(_named)]
Filled = Annotated[str, Field(pattern=FILLED)]


def _drawable(temperature: float) -> float:
    if 0 < temperature < 0.01:  # vLLM would take 0.01, and the study and its card would name another
        raise ValueError("too near to 0; expected 0, or 0.01 to 2")
    return temperature


Temperature = Annotated[Finite, Field(ge=0, le=2), AfterValidator(_drawable)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartsSpec(_Table):
    """Checkpoints that ship as parts and are put together on first use (see `inputs/shipped_parts.py`).

    Attributes:
        package, version, file, sha256: the installed package that carries a GGUF file of the SFT model, and the file.
        aligned_adapter, reward_adapter: PEFT folders under `studies/`.
    """

    package: Inside
    version: Inside
    file: Inside
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    aligned_adapter: Inside
    reward_adapter: Inside


class PairSpec(_Table):
    """The two checkpoints, how to talk to them, and the reward model that judges, where `[reward]` names no scorer.

    Attributes:
        adapter: a LoRA adapter in PEFT's format; the aligned model is then `aligned` with it merged in, and sft, if it
            is not given, is `aligned` without it.
        check_reward_model: a second judge, which rates the winner's answers at the end; the search never uses it.
        aligned_revision, adapter_revision, sft_revision, reward_revision, check_reward_revision: a commit, tag or
            branch of that model's repository on the Hub; where it is not set, the newest.
        stop_token_ids: tokens that end an answer, beyond what the checkpoint's generation config names.
        stop_strings: texts that end an answer, beyond what the checkpoint's generation config names.
        chat_template: a Jinja template for an aligned checkpoint that brings none.
        max_model_len: cap of the context, in tokens.
        published_alpha: the alpha that the model's authors chose; the search begins with it, where it is in the range.
        needs_remote_code: the repositories' own Python must be run; asks for `--trust-remote-code`.
    """

    aligned: ModelName | None = None
    adapter: ModelName | None = None
    sft: ModelName | None = None
    aligned_revision: Filled | None = None
    adapter_revision: Filled | None = None
    sft_revision: Filled | None = None
    reward_model: ModelName | None = None
    reward_revision: Filled | None = None
    check_reward_model: ModelName | None = None
    check_reward_revision: Filled | None = None
    parts: PartsSpec | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    chat_template: Filled | None = None
    max_model_len: int = Field(4096, ge=16)
    needs_remote_code: bool = False
    published_alpha: Finite | None = None
    family: str = ""
    aliases: tuple[Name, ...] = ()
    licence: str = ""
    notes: str = ""

    @model_validator(mode="after")
    def _whole(self) -> PairSpec:
        wanted = ("aligned",) if self.adapter else ("aligned", "sft")
        missing = [k for k in wanted if getattr(self, k) is None]
        if self.adapter and self.aligned is None:
            raise ValueError(
                "an adapter but no aligned; expected as aligned the checkpoint that the adapter belongs to"
            )
        if self.parts is None and missing:
            raise ValueError(f"no {', '.join(missing)}; expected aligned, sft and reward_model (paths or Hub ids)")
        return self


class PromptsSpec(_Table):
    """Where prompts come from: a file, or a Hub data set and its split; n of them for the search.

    Attributes:
        split: of a Hub data set; a file has none.
        n: how many prompts the search evaluates each alpha on; more make smaller errors, and take longer.
    """

    source: str = "HuggingFaceH4/ultrafeedback_binarized"
    split: str = "test_gen"
    n: int = Field(1000, ge=MIN_PROMPTS)


class SamplingSpec(_Table):
    """How answers are drawn; one sample a prompt. top_k = 0 and top_p = 1 leave a filter out.

    Attributes:
        temperature: 0 always takes the likeliest token; 1 is the model's own distribution; 0, or 0.01 to 2.
        top_p: of the likeliest tokens, as many as together have this probability are drawn from, above 0 to 1.
        top_k: this many of the likeliest tokens are drawn from, at most.
        presence_penalty: taken once from the logit of a token that the answer has already, -2 to 2.
        frequency_penalty: taken from a token's logit for each time that the answer has it already, -2 to 2.
        max_tokens: length of an answer at most, in tokens; a longer one is cut off.
    """

    temperature: Temperature = 0.7
    top_p: Finite = Field(0.9, gt=0, le=1)
    top_k: int = Field(50, ge=0)
    presence_penalty: Finite = Field(0.1, ge=-2, le=2)
    frequency_penalty: Finite = Field(0.1, ge=-2, le=2)
    max_tokens: int = Field(2048, ge=1)


class SearchSpec(_Table):
    """Where alpha is looked for, by what, and for what. `seed` fixes the prompts' order, every answer and the sampler.

    Attributes:
        alpha_min: lower end of the range, a number or "auto": the sampler `expo` then finds it, -1 at the least.
        alpha_max: upper end of the range, a number or "auto": the sampler `expo` then finds it, 64 at the most.
        sampler: what proposes alphas: expo, gp, tpe, grid or random.
        racing: stop a trial early once it cannot win.
        objective: reward, win-rate or length-controlled: the mean reward, the win rate, or the mean reward at equal
            lengths, each against alpha = 0.
        combine_rewards: what an answer's reward is where several reward models rate: the mean of theirs or the least of
            them, each in standard deviations of its rewards at alpha = 0; see docs/scorers.md.
        tolerance: end the search once going on is expected to gain less than this share of the gain, 0 to below 1;
            0 never does.
        seed: fixes the prompts' order, every answer and the sampler.
    """

    alpha_min: Finite | Literal["auto"] = "auto"
    alpha_max: Finite | Literal["auto"] = "auto"
    sampler: Literal["expo", "gp", "tpe", "grid", "random"] = "expo"
    racing: bool = True
    objective: Literal["reward", "win-rate", "length-controlled"] = "reward"
    combine_rewards: Combine = "mean"
    tolerance: Finite = Field(0.05, ge=0, lt=1)
    seed: int = Field(42, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _ordered(self) -> SearchSpec:
        low, high = self.alpha_min, self.alpha_max
        if not isinstance(low, str) and not isinstance(high, str) and low >= high:
            raise ValueError(f"alpha_min {low:g} is not below alpha_max {high:g}")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a study keeps, and compares: as ever where nothing is combined."""
        kept: dict[str, Any] = plain(self)
        return {key: value for key, value in kept.items() if key != "combine_rewards" or value != "mean"}


class GuardrailSpec(_Table):
    """What an alpha may do to the answers, against alpha = 0; one that does more cannot win.

    Attributes:
        cut_off_rise: how much larger the share of answers that run to max_tokens without an end may be than at
            alpha = 0, as a share of all answers, 0 to 1: with 0.2, where 5 % are cut off at alpha = 0, up to 25 %
            may be.
        repeating_rise: how much larger the share of answers that say the same over and over, for half of their length
            or more, may be than at alpha = 0, as a share of all answers, 0 to 1.
        length_ratio: how many times as long as at alpha = 0 answers may be, by their mean number of tokens; 1 or more.
        bench: by task of `expo-search bench`, how much lower than at alpha = 0 its mean score may be, in the score's
            unit: { gsm8k = 0.02 } is 2 of 100 answers that are right no more. An alpha that is shown to lose more is
            not recommended.
    """

    cut_off_rise: Finite = Field(0.2, ge=0)
    repeating_rise: Finite = Field(0.1, ge=0)
    length_ratio: Finite = Field(3.0, ge=1)
    bench: Mapping[str, Annotated[Finite, Field(ge=0)]] = Field(default_factory=dict)


def _server(url: str) -> str:
    expected = "not the address of a server; expected http://HOST:PORT/v1, or https"
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets around no address
        raise ValueError(expected) from None
    if not is_server:
        raise ValueError(expected)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address with more than host and path; expected a key in OPENAI_API_KEY, and nowhere else")
    return url.rstrip("/")


def _options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = sorted({"model", "messages", "stream", "n"} & options.keys())
    if ours:
        raise ValueError(
            f"{', '.join(ours)}, which a judge's requests have already or cannot have; expected other keys"
        )
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError):  # a date, a number that is not finite
        raise ValueError("a value that JSON does not have; expected texts, numbers, lists and tables") from None
    return options


class RewardSpec(_Table):
    """How the reward model is run, a conversation's cap and a batch's budget in tokens, or what rates in its place.

    Attributes:
        scorer: a scorer of one's own in the place of a reward model: `module:function`, `FILE.py:function`, or a
            command; see docs/scorers.md. A study file that names one is run with `--trust-remote-code`.
        judge_url: a server with OpenAI's chat completions, up to its version (http://localhost:8000/v1).
        judge_model: a model there, asked whether the answer at alpha or that at alpha = 0 is better.
        judge_options: further keys of such a request, over temperature = 0 and max_tokens = 1024.
        judge_at_once: requests to a judge at a time.
        timeout_s: seconds for one batch of a command's, or one reply of a judge.
        backend: transformers in this process, or a vLLM engine of its own, whose rewards differ by rounding.
        max_tokens: length of a conversation at most, in tokens; a longer one is cut.
        batch_tokens: size of a batch at most, in tokens with padding.
        arithmetic: what it computes in; "auto" is bfloat16, or float32 on a CPU without instructions for that.
    """

    scorer: Filled | None = None
    judge_url: Annotated[str, AfterValidator(_server)] | None = None
    judge_model: Filled | None = None
    judge_options: Annotated[Mapping[str, Any], AfterValidator(_options)] = Field(default_factory=dict)
    judge_at_once: int = Field(16, ge=1, le=1024)
    timeout_s: Finite = Field(600, gt=0)
    backend: Literal["transformers", "vllm"] = "transformers"
    max_tokens: int = Field(4096, ge=16)
    batch_tokens: int = Field(16384, ge=16)
    arithmetic: Asked = "auto"

    @model_validator(mode="after")
    def _one_of_them(self) -> RewardSpec:
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("half a judge; expected judge_url and judge_model")
        if self.scorer is not None and self.judge_url is not None:
            raise ValueError("a scorer beside a judge; expected one of them")
        if self.rates_itself and self.backend != "transformers":
            raise ValueError(f"a scorer beside backend {self.backend!r}; expected one of them: a backend runs a model")
        return self

    @property
    def rates_itself(self) -> bool:
        """Whether a scorer or a judge stands in the place of a reward model."""
        return self.scorer is not None or self.judge_url is not None

    @property
    def named(self) -> str:
        """What rates in the place of a reward model, for people; empty where none does."""
        return self.scorer or (f"{self.judge_model} at {self.judge_url}" if self.judge_url else "")


class RewardModelSpec(_Table):
    """One of several reward models that rate each answer, a table of the array `[[reward]]`; see docs/scorers.md.

    Attributes:
        model, revision: a folder or Hub id, and a revision of that.
        backend, arithmetic: as in `[reward]`, and the same for all of them.
        max_tokens, batch_tokens: as in `[reward]`.
    """

    model: Filled
    revision: Filled | None = None
    backend: Literal["transformers", "vllm"] = "transformers"
    max_tokens: int = Field(4096, ge=16)
    batch_tokens: int = Field(16384, ge=16)
    arithmetic: Asked = "auto"

    @property
    def alone(self) -> RewardSpec:
        """How it is run, as where it is the only one."""
        return RewardSpec(
            backend=self.backend,
            max_tokens=self.max_tokens,
            batch_tokens=self.batch_tokens,
            arithmetic=self.arithmetic,
        )


class EngineSpec(_Table):
    """How vLLM is run.

    Attributes:
        dtype: of the weights, to which theta(alpha) is rounded; "auto" is the checkpoint's own.
        arithmetic: what is multiplied in, that dtype or float32; "auto" is float32 on a CPU without instructions for
            the weights' dtype.
        max_model_len: the context, in tokens; where it is not set, as far as 4096 tokens if the checkpoint allows them.
        max_num_seqs: sequences that are answered at once; "auto" is what the memory plan has room for on a GPU, and 256
            on a CPU.
        tensor_parallel: GPUs, or groups of cores, that share the weights of one engine.
        kv_cache_gib: size of the KV cache on a CPU, in GiB; on a GPU the cache takes what the plan leaves.
        sources: where the two checkpoints are kept that every switch reads: on the GPU, in host memory from which they
            are streamed, or as the memory plan chooses. A CPU engine has one memory, its own.
        timeout_s: seconds without a token after which the engine counts as hung and is started anew.
        own_process: on a CPU with one rank, run the engine in a process of its own: it starts more slowly, and a crash
            of its native code ends that process alone. Elsewhere it always has one.
        batch_invariant: kernels with which an answer does not depend on what shares its batch; slower, and only on
            GPUs of compute capability 8.0 and newer.
    """

    dtype: Asked = "auto"
    arithmetic: Asked = "auto"
    tensor_parallel: int = Field(1, ge=1)
    max_num_seqs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    sources: Literal["gpu", "host", "auto"] = "auto"
    kv_cache_gib: int = Field(2, ge=1)
    max_model_len: int = Field(4096, ge=16)
    timeout_s: Finite = Field(600, gt=0)
    own_process: bool = False
    batch_invariant: bool = False


class StudySpec(_Table):
    """One search, whole. `name` is the study's name in the database.

    Attributes:
        rewards: several reward models, `[[reward]]` in a study file; `reward` then has what is the same for all.
    """

    name: Name
    pair: PairSpec
    prompts: PromptsSpec = PromptsSpec()
    sampling: SamplingSpec = SamplingSpec()
    search: SearchSpec = SearchSpec()
    guardrails: GuardrailSpec = GuardrailSpec()
    rewards: tuple[RewardModelSpec, ...] = ()
    reward: RewardSpec = Field(RewardSpec(), validate_default=True)
    engine: EngineSpec = EngineSpec()
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _several(cls, data: Any) -> Any:
        told = apart(data) if isinstance(data, Mapping) else {}
        rewards = told.get("rewards")
        if not rewards or not isinstance(rewards, list | tuple):
            return told if isinstance(data, Mapping) else data
        first, reward = rewards[0], told.get("reward", {})
        if isinstance(first, Mapping) and isinstance(reward, Mapping):
            told["reward"] = dict(reward) | {key: first[key] for key in ("backend", "arithmetic") if key in first}
        return told

    @field_validator("rewards")
    @classmethod
    def _differ(cls, rewards: tuple[RewardModelSpec, ...], info: ValidationInfo) -> tuple[RewardModelSpec, ...]:
        pair = info.data.get("pair")
        if len(rewards) < 2:
            found = "one reward model" if rewards else "no reward model"
            raise ValueError(f"{found} in an array; expected two or more, or one as reward_model in [pair]")
        if pair is not None and pair.reward_model is not None:
            raise ValueError("several reward models beside reward_model in [pair]; expected one of the two")
        names = [(entry.model, entry.revision) for entry in rewards]
        twice = next((model for model, revision in names if names.count((model, revision)) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} twice; expected reward models that differ")
        for key in ("backend", "arithmetic"):
            if len({getattr(entry, key) for entry in rewards}) > 1:
                raise ValueError(f"more than one {key}; expected the same for all reward models")
        return rewards

    @field_validator("reward")
    @classmethod
    def _rates(cls, reward: RewardSpec, info: ValidationInfo) -> RewardSpec:
        pair, several = info.data.get("pair"), info.data.get("rewards")  # None: faults of its own, which are told
        one = pair is None or pair.reward_model is not None or pair.parts is not None
        if not one and several == () and not reward.rates_itself:
            raise ValueError("nothing that rates answers; expected a reward_model in [pair], or a scorer here")
        search = info.data.get("search")
        if several and reward.rates_itself:
            kind = "scorer" if reward.scorer is not None else "judge"
            raise ValueError(f"a {kind} beside several reward models; expected one of the two")
        if several == () and search is not None and search.combine_rewards != "mean":
            found = f"combine_rewards {search.combine_rewards!r} with one reward model"
            raise ValueError(f"{found}; expected several (--reward-model A --reward-model B, or [[reward]])")
        if reward.judge_url is not None and search is not None and search.objective == "reward":
            raise ValueError("a judge, which gives no reward; expected objective win-rate or length-controlled")
        return reward

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a study keeps: as ever where one reward model rates, or a scorer."""
        kept: dict[str, Any] = plain(self)
        return {key: value for key, value in kept.items() if key != "rewards" or value}

    @property
    def each_reward(self) -> tuple[StudySpec, ...]:
        """This study with each of its reward models alone; itself where one rates, or something in its place."""
        if not self.rewards:
            return (self,)
        return tuple(
            self.model_copy(
                update={
                    "pair": self.pair.model_copy(
                        update={"reward_model": entry.model, "reward_revision": entry.revision}
                    ),
                    "reward": entry.alone,
                    "rewards": (),
                }
            )
            for entry in self.rewards
        )


def asks_consent(scorer: str | None, judge_url: str | None) -> bool:
    """Whether what rates a study may run, where others may have named it, with its user's consent alone."""
    return scorer is not None or (judge_url is not None and not is_here(judge_url))


def check_consent(spec: StudySpec, where: str) -> None:
    """Check that a scorer may run which somebody else may have named: in a file, or in a study of a database.

    So must a judge be on another machine, which gets prompts, answers, and the user's key.

    Raises:
        StudyError: without `trust_remote_code`.
    """
    reward = spec.reward
    if spec.trust_remote_code or not asks_consent(reward.scorer, reward.judge_url):
        return
    if reward.scorer is None:
        raise StudyError(
            where=where,
            found=f"a judge on another machine, {reward.judge_url}, which gets answers and OPENAI_API_KEY",
            expected="consent to send them",
            do="look at the address, then pass --trust-remote-code",
        )
    raise StudyError(
        where=where,
        found=f"a scorer that runs on this machine ({reward.scorer})",
        expected="consent to run it",
        do="look at it, then pass --trust-remote-code",
    )


def is_here(url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stored_spec(stored: Mapping[str, Any] | None, *, name: str, trust_remote_code: bool) -> StudySpec:
    """The spec that a study's database keeps; consent to run remote code is asked for anew.

    Raises:
        StudyError: the study was not made by expo-search, or by a version with another schema.
    """
    if stored is None:
        raise StudyError(
            where=f"study {name}",
            found="no settings of expo-search",
            expected="a study that expo-search made",
            do="give another study",
        )
    return check_spec(dict(stored) | {"trust_remote_code": trust_remote_code}, f"study {name}")


def check_given(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Check settings that lie over a file's or a preset's, each value by itself, before those are read.

    Raises:
        StudyError: values that are not allowed, whatever the others are.
    """
    try:
        StudySpec.model_validate(given)
    except ValidationError as faults:
        # of a table, and of what is missing, nothing can be said yet
        errors = [error for error in faults.errors() if len(error["loc"]) > 1 and error["type"] != "missing"]
        if errors:
            raise not_allowed(errors, "command line", given, StudySpec) from None


def check_spec(data: Mapping[str, Any], where: str, typed: Mapping[str, Mapping[str, Any]] | None = None) -> StudySpec:
    """The spec that nested settings, by table and key, make. `where` names their file or study in messages.

    `typed`: those of the settings that options gave; a fault of theirs is told of the options.

    Raises:
        StudyError: unknown keys or values that are not allowed, all of them at once; a tokenizer of remote code without
            consent; a context with no room for a prompt.
    """
    try:
        spec = StudySpec.model_validate(data)
    except ValidationError as faults:
        raise not_allowed(faults.errors(), where, typed or {}, StudySpec) from None
    if spec.pair.needs_remote_code and not spec.trust_remote_code:
        raise StudyError(
            where=where,
            found="a pair whose tokenizer is code in its repository",
            expected="consent to run it",
            do="pass --trust-remote-code if you trust the repository",
        )
    if "max_model_len" in spec.engine.model_fields_set and spec.sampling.max_tokens >= spec.engine.max_model_len:
        raise StudyError(
            where=where,
            found=f"max_tokens {spec.sampling.max_tokens} in a context of {spec.engine.max_model_len} tokens",
            expected="room for a prompt",
            do="lower --max-tokens or raise --max-model-len",
        )
    return spec
