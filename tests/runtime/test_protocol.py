"""Random workloads around the real scheduler, cache, batch and sampler break no rule.

tests/native/simulation plays the device and checks the rules, which are numbered as the invariants
of the design, or named. A seed that fails can be run again alone, with a line for every decision:
`python tests/runtime/test_protocol.py SEED` with the Python of .venv.
"""

import sys

import pytest

from mmengine._testing_runtime import rules, simulate

BLOCKS, WORKLOADS = 10, 1000
REACHED = ("preemptions", "cancelled", "hits", "evictions", "forks", "copies", "delivered_rows")
REACHED += ("masked", "forced", "errors", "pinned")


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_rule_is_broken(block):
    outcome = simulate(WORKLOADS * block, WORKLOADS)
    if outcome["violations"]:
        seed = outcome["violations"][0]["seed"]
        trace = "\n".join(simulate(seed, 1, trace=True)["trace"][-30:])
        pytest.fail(f"seed {seed} breaks rules:\n{trace}")
    assert outcome["reached"]["workloads"] == WORKLOADS
    for name in REACHED:
        assert outcome["reached"][name] > 10, f"the workloads no longer reach {name}"


def test_a_seed_gives_the_same_workload_again():
    first, second = (simulate(7, 3, trace=True) for _ in range(2))
    assert first == second
    assert len(first["trace"]) > first["reached"]["steps"]


if __name__ == "__main__":
    outcome = simulate(int(sys.argv[1]), 1, trace=True)
    print("\n".join(outcome["trace"]))
    for violation in outcome["violations"]:
        print(f"rule {violation['rule']}: {rules()[violation['rule']]}")
