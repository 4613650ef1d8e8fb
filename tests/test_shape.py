"""The factors of a shape, by names of weights; expected numbers are worked out by hand."""

from __future__ import annotations

import json
import pickle

import pytest

from expo_search.errors import StudyError
from expo_search.weights.shape import (
    Shape,
    ShapedAlpha,
    alpha_of,
    count_layers,
    dimensions,
    from_message,
    shape_of,
    shaped,
    to_message,
)

DEPTH = Shape("depth", (0.5, 1.0), 5)
MODULES = Shape("attn-mlp", (1.5, 0.25), 5)
BLOCKS = Shape("blocks:3", (0.5, 1.0, 2.0), 5)
OUTSIDE = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "transformer.wte.weight"]


def test_depth_rises_by_a_line_from_the_first_to_the_last_layer() -> None:
    factors = [DEPTH.factor(f"model.layers.{layer}.self_attn.q_proj.weight") for layer in range(5)]
    assert factors == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_blocks_are_runs_of_layers_as_equal_as_can_be() -> None:
    assert [BLOCKS.factor(f"h.{layer}.mlp.c_fc.weight") for layer in range(5)] == [0.5, 0.5, 1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("module", "factor"),
    [
        ("self_attn.q_proj.weight", 1.5),
        ("self_attn.qkv_proj.weight", 1.5),  # as vLLM fuses it
        ("attention.wqkv.weight", 1.5),
        ("attn.c_attn.bias", 1.5),
        ("self_attn.q_norm.weight", 1.5),  # inside attention
        ("mlp.gate_up_proj.weight", 0.25),
        ("mlp.experts.3.down_proj.weight", 0.25),
        ("block_sparse_moe.experts.w13_weight", 0.25),
        ("feed_forward.w1.weight", 0.25),
        ("fc1.weight", 0.25),
        ("post_attention_layernorm.weight", 1.0),  # a layer's own norms keep alpha
        ("pre_feedforward_layernorm.weight", 1.0),
        ("ln_1.weight", 1.0),
        ("mixer.in_proj.weight", 1.0),
    ],
)
def test_attn_mlp_reads_a_layers_module(module: str, factor: float) -> None:
    for prefix in ("model.layers.3.", "transformer.h.3.", "layers.3."):
        assert MODULES.factor(prefix + module) == factor


@pytest.mark.parametrize("shape", [DEPTH, MODULES, BLOCKS])
@pytest.mark.parametrize("name", OUTSIDE)
def test_what_belongs_to_no_layer_keeps_alpha(shape: Shape, name: str) -> None:
    assert shape.factor(name) == 1.0
    assert alpha_of(shaped(0.3, shape), name) == 0.3


def test_neutral_numbers_are_a_plain_alpha_and_a_plain_alpha_is_every_weights() -> None:
    for kind in ("depth", "attn-mlp", "blocks:2", "blocks:4"):
        neutral = Shape(kind, tuple(d.neutral for d in dimensions(kind)), 5)
        assert {neutral.factor(f"model.layers.{i}.mlp.up_proj.weight") for i in range(5)} == {1.0}
        assert type(shaped(0.3, neutral)) is float
    assert type(shaped(0.3, None)) is float
    assert alpha_of(0.3, "model.layers.0.mlp.up_proj.weight") == 0.3
    assert shape_of(0.3) is None


def test_a_shaped_alpha_is_a_number_that_equals_no_plain_one() -> None:
    alpha = shaped(0.3, DEPTH)
    assert isinstance(alpha, ShapedAlpha)
    assert f"{alpha:.2f} {alpha + 1:.1f} {json.dumps({'alpha': alpha})}" == '0.30 1.3 {"alpha": 0.3}'
    assert repr(alpha) == "0.3 by depth [0.5, 1.0]"  # with which answers are stamped
    assert alpha != 0.3
    assert alpha != shaped(0.3, BLOCKS)
    assert len({alpha, shaped(0.3, DEPTH), 0.3}) == 2


def test_it_goes_to_other_processes_whole() -> None:
    for alpha in (0.3, shaped(-0.3, DEPTH), shaped(2.0, BLOCKS)):
        assert pickle.loads(pickle.dumps(alpha)) == alpha
        assert from_message(json.loads(json.dumps(to_message(alpha)))) == alpha
        shape = shape_of(alpha)
        assert shape is None or Shape.from_json(json.loads(json.dumps(shape.as_json()))) == shape


@pytest.mark.parametrize("kind", ["", "width", "blocks", "blocks:1", "blocks:5", "blocks:x", "depth:2"])
def test_an_unknown_kind_is_refused_with_those_there_are(kind: str) -> None:
    with pytest.raises(StudyError, match="expected depth, attn-mlp, or blocks:K"):
        dimensions(kind)


def test_layers_are_counted_in_one_stack_alone() -> None:
    names = [*OUTSIDE, *(f"model.layers.{i}.mlp.experts.{7 * i}.up_proj.weight" for i in range(12))]
    assert count_layers(names, "depth") == 12
    with pytest.raises(StudyError, match="0 stacks of layers"):
        count_layers(OUTSIDE, "depth")
    with pytest.raises(StudyError, match="2 stacks of layers"):
        count_layers([*names, "visual.blocks.0.attn.qkv.weight"], "depth")
    with pytest.raises(StudyError, match=r"3 layers; .* at least 4"):
        count_layers([f"h.{i}.attn.c_attn.weight" for i in range(3)], "blocks:4")


@pytest.mark.parametrize("shape", [DEPTH, MODULES, BLOCKS])
def test_filters_give_each_weight_the_factor_of_its_name(shape: Shape) -> None:
    modules = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "post_attention_layernorm.weight")
    names = [*OUTSIDE, *(f"model.layers.{i}.{m}" for i in range(shape.n_layers) for m in modules)]
    filters = shape.filters(names)
    for name in names:
        assert next((factor for part, factor in filters if part in name), 1.0) == shape.factor(name)
    assert len(filters) == (2 if shape is MODULES else 5)


def test_a_layers_filter_is_not_that_of_a_layer_whose_number_ends_alike() -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(23)]
    deep = Shape("depth", (1.0, 1.0), 23)
    for name in names:
        assert next(factor for part, factor in deep.filters(names) if part in name) == deep.factor(name)
