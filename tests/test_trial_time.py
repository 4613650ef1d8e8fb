"""The time of a trial by where the sources are: against arithmetic by hand, and what must grow or shrink with what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expo_search.engine.trial_time import Placement, Workload

GB = 10**9
WORK = Workload(n_prompts=1000, prompt_tokens=100, max_tokens=2000)  # answers of 500 tokens
ON_GPU = Placement(weights=14 * GB, kv_per_token=100_000, kv_cache=12 * GB, streamed=0, bandwidth=2e12)
ON_HOST = replace(ON_GPU, kv_cache=40 * GB, streamed=28 * GB)


def test_a_trial_is_its_steps_and_the_streaming_of_its_switch() -> None:
    assert ON_GPU.sequences(WORK) == 12 * GB // (100_000 * 600) == 200
    # a step: 5 ms, 14 GB of weights, and 200 sequences' keys and values of 100 + 500 / 2 tokens, at 2 TB/s
    step_s = 0.005 + (14e9 + 200 * 100_000 * 350) / 2e12
    assert ON_GPU.trial_s(WORK, 512) == pytest.approx(1000 * 500 / 200 * step_s)
    step_s = 0.005 + (14e9 + 512 * 100_000 * 350) / 2e12
    assert ON_HOST.trial_s(WORK, 512) == pytest.approx(1000 * 500 / 512 * step_s + 28 / 20)


def test_more_cache_more_sequences_or_a_faster_memory_never_make_a_trial_longer() -> None:
    for name, values in (("kv_cache", [2, 6, 12, 40]), ("weights", [28, 14, 7]), ("streamed", [28, 14, 0])):
        times = [replace(ON_GPU, **{name: value * GB}).trial_s(WORK, 512) for value in values]
        assert times == sorted(times, reverse=True), name
        assert times[0] > times[-1], name
    times = [replace(ON_GPU, bandwidth=b).trial_s(WORK, 512) for b in (1e12, 2e12, 3.35e12)]
    assert times == sorted(times, reverse=True)
    times = [ON_HOST.trial_s(WORK, allowed) for allowed in (1, 8, 64, 256, 512)]
    assert times == sorted(times, reverse=True)


def test_longer_prompts_and_answers_leave_room_for_fewer_sequences_and_take_longer() -> None:
    longer = [replace(WORK, prompt_tokens=1000), replace(WORK, max_tokens=8000)]
    for work in longer:
        assert ON_GPU.sequences(work) < ON_GPU.sequences(WORK)
        assert ON_GPU.trial_s(work, 512) > ON_GPU.trial_s(WORK, 512)


def test_streaming_is_worth_its_time_only_where_there_are_prompts_to_answer_at_once() -> None:
    for n_prompts, sooner in ((16, ON_GPU), (200, ON_GPU), (1000, ON_HOST), (10_000, ON_HOST)):
        work = replace(WORK, n_prompts=n_prompts)
        other = ON_HOST if sooner is ON_GPU else ON_GPU
        assert sooner.trial_s(work, 512) < other.trial_s(work, 512), n_prompts


def test_one_sequence_runs_however_small_the_cache_and_a_model_without_one_runs_all() -> None:
    assert replace(ON_GPU, kv_cache=0).sequences(WORK) == 1
    assert replace(ON_GPU, kv_cache=0).trial_s(WORK, 512) < float("inf")
    assert replace(ON_GPU, kv_per_token=0).sequences(WORK) == WORK.n_prompts
