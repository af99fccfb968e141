"""The work of a model by its shape, and the least time that a machine needs for it."""

import math

import pytest
from make_tiny_model import make_tiny_model

import mmengine
from mmengine.roofline import Machine, Work, decode_work, prefill_work


@pytest.fixture(params=[{}, {"dtype": "bf16", "tied": True, "heads": 6, "kv_heads": 3}])
def model(request, tmp_path):
    """(what inspect says, the plan of an engine) of a tiny model."""
    path = make_tiny_model(tmp_path, **request.param)
    with mmengine.Engine(path, device="cpu", kv_dtype="fp8") as engine:
        return mmengine.inspect(path), engine.plan()


def test_operations_are_counted_by_the_shapes(model):
    info, plan = model
    config = info["config"]
    linears = sum(
        math.prod(tensor["shape"])
        for tensor in info["tensors"]
        if tensor["name"].startswith("layers.") and len(tensor["shape"]) == 2
    )
    assert plan.flops_per_token == 2 * linears
    assert plan.flops_per_logits_row == 2 * config["vocab_size"] * config["hidden_size"]
    queries = config["num_heads"] * config["head_dim"] * config["num_layers"]
    assert plan.flops_per_position == 4 * queries


def test_a_prompt_is_the_sum_of_its_tokens(model):
    """Of its decode steps, but the weights are read once, and its last token alone has logits."""
    _, plan = model
    steps = [decode_work(plan, "bf16", 3, position) for position in range(1, 12)]
    whole = prefill_work(plan, "bf16", 3, 11)
    assert whole.flops == sum(s.flops for s in steps) - 10 * 3 * plan.flops_per_logits_row
    assert whole.bytes == plan.bytes_per_token + 3 * 11 * plan.kv_bytes_per_token["fp8"]


@pytest.mark.parametrize("weight_dtype", ["int8", "int4"])
@pytest.mark.parametrize("phase", [decode_work, prefill_work])
def test_linears_of_integer_weights_multiply_integers(model, weight_dtype, phase):
    """Attention stays f32; bytes and the sum of operations are those of any other type."""
    _, plan = model
    integer, other = phase(plan, weight_dtype, 3, 11), phase(plan, "fp8", 3, 11)
    assert other.int8_ops == 0
    assert (integer.bytes, integer.operations) == (other.bytes, other.flops)
    positions = {decode_work: 11, prefill_work: 66}[phase]
    assert integer.flops == 3 * positions * plan.flops_per_position
    assert integer.int8_ops > 0


def test_the_longer_of_two_times_is_the_limit():
    machine = Machine(read_bytes_per_s=10.0, flops_per_s=100.0, int8_ops_per_s=400.0)
    assert machine.seconds(Work(bytes=30, flops=200)) == 3.0
    assert machine.bound(Work(bytes=30, flops=200)) == "memory"
    assert machine.seconds(Work(bytes=10, flops=200)) == 2.0
    assert machine.bound(Work(bytes=10, flops=200)) == "multiply"


def test_operations_of_both_kinds_share_the_multiply_units():
    machine = Machine(read_bytes_per_s=10.0, flops_per_s=100.0, int8_ops_per_s=400.0)
    work = Work(bytes=20, flops=150, int8_ops=600)  # 2 s of reading, 1.5 + 1.5 of multiplying
    assert work.operations == 750
    assert machine.seconds(work) == 3.0
    assert machine.bound(work) == "multiply"
