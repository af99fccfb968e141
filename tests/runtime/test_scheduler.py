"""Scheduler, KvCache, Batch and Sampler step by step against a fake device: what was decided when.

The device's hidden state is the list of tokens it reads through the block table, and each entry
knows all tokens before it, so a wrong block, position, slot, order or shared prefix shows as a
text that differs from the text of the same prompt alone. test_protocol.py has random workloads.
"""

import hashlib

import pytest

from mmengine._testing_runtime import Harness

VOCAB = 50
RUNNING, STOP, LENGTH, CANCELLED = range(4)


def next_token(tokens: list[int], banned: list[int]) -> int:
    for salt in range(100):
        digest = hashlib.blake2b(repr((tokens, salt)).encode(), digest_size=4).digest()
        token = int.from_bytes(digest, "little") % VOCAB
        if token not in banned:
            return token
    raise AssertionError("no token is allowed")


def solo(prompt, max_tokens, min_tokens, stop_ids, max_context):
    """The text by definition: no batch, no blocks, no chunks."""
    tokens = list(prompt)
    while True:
        generated = len(tokens) - len(prompt)
        token = next_token(tokens, stop_ids if generated < min_tokens else [])
        tokens.append(token)
        if token in stop_ids and generated + 1 > min_tokens:
            return tokens, STOP
        if generated + 1 == max_tokens or len(tokens) >= max_context:
            return tokens, LENGTH


class Device:
    """What a backend's begin, forward, sample and accept do, on plain lists."""

    def __init__(self, num_blocks, block_tokens, slots):
        self.block_tokens = block_tokens
        self.kv = [[None] * block_tokens for _ in range(num_blocks + 1)]
        self.length, self.pending = [0] * slots, [None] * slots
        self.table = [{} for _ in range(slots)]

    def step(self, batch):
        pairs = batch["copy"].reshape(-1, 2).tolist()
        assert not {source for source, _ in pairs} & {target for _, target in pairs}
        for source, target in pairs:
            self.kv[target] = list(self.kv[source])
        updates = batch["table_update"].reshape(-1, 3)
        for slot, index, block in updates.tolist():
            assert block != 0, "the scrap block was handed out"
            self.table[slot][index] = block
        sampled, seen_rows = [], {}
        for s, slot in enumerate(batch["slot"].tolist()):
            begin, end = batch["cu_rows"][s : s + 2].tolist()
            start = int(batch["start"][s])
            position = self.length[slot] if start < 0 else start
            for row in range(begin, end):
                token = int(batch["row_id"][row])
                token = self.pending[slot] if token < 0 else token
                before, chain = self.read(slot, position)
                block = self.table[slot][position // self.block_tokens]
                self.kv[block][position % self.block_tokens] = (chain, token)
                seen_rows[row] = [*before, token]
                position += 1
            self.length[slot] = position
        for e, row in enumerate(batch["logits_row"].tolist()):
            given = batch["given"][e]
            sampled.append(given if given >= 0 else next_token(seen_rows[row], batch["bans"][e]))
        for s, slot in enumerate(batch["slot"].tolist()):
            first, last = batch["cu_logits"][s : s + 2].tolist()
            if last > first:
                self.pending[slot] = sampled[last - 1]
        return sampled

    def read(self, slot, end):
        """The tokens of positions [0, end), and a hash of them."""
        tokens, chain = [], 0
        for p in range(end):
            before, token = self.kv[self.table[slot][p // self.block_tokens]][p % self.block_tokens]
            assert before == chain, f"slot {slot} reads the KV of another prefix at {p}"
            tokens.append(token)
            chain = hash((chain, token))
        return tokens, chain


def test_first_come_first_served():
    harness = Harness(num_blocks=4, block_tokens=4, slots=1, max_context=16, prefill_chunk=4)
    device = Device(4, 4, 1)
    for request in range(3):
        harness.submit(request, [request + 1] * 3, max_tokens=2)
    order = []
    while (batch := harness.schedule()) is not None:
        order += [r for r, _, _, finish in harness.commit(device.step(batch)) if finish != RUNNING]
        harness.reap()
    assert order == [0, 1, 2]


def test_long_prompt_does_not_stall_generation():
    harness = Harness(num_blocks=64, block_tokens=4, slots=2, max_context=128, prefill_chunk=8)
    device = Device(64, 4, 2)
    harness.submit(0, [1, 2, 3], max_tokens=100)
    harness.commit(device.step(harness.schedule()))
    harness.submit(1, [4] * 64, max_tokens=2)
    for _ in range(8):
        batch = harness.schedule()
        assert 0 in batch["ids"], "a running sequence lost its turn to a prompt"
        assert len(batch["row_id"]) <= 8 + 2
        harness.commit(device.step(batch))


def test_unknown_request_is_not_ended():
    harness = Harness(num_blocks=4, block_tokens=4, slots=1, max_context=16, prefill_chunk=4)
    assert not harness.end(7)


def test_pool_smaller_than_a_sequence_is_refused():
    from mmengine.errors import EngineDeadError

    with pytest.raises(EngineDeadError, match="cannot hold"):
        Harness(num_blocks=3, block_tokens=4, slots=1, max_context=16, prefill_chunk=4)


def run_one(harness, device, request, prompt, **options):
    """(text, rows computed, prompt tokens that were cached) of a request that runs alone."""
    harness.submit(request, prompt, **options)
    rows = 0
    while (batch := harness.schedule()) is not None:
        rows += len(batch["row_id"])
        harness.commit(device.step(batch))
        state = harness.sequences()[-1]
        harness.reap()
    return state["tokens"], rows, state["cached_tokens"]


def test_a_prefix_is_computed_once():
    harness = Harness(num_blocks=32, block_tokens=4, slots=2, max_context=64, prefill_chunk=64)
    device = Device(32, 4, 2)
    prompt = list(range(18))
    text, rows, cached = run_one(harness, device, 0, prompt, max_tokens=5)
    assert (rows, cached) == (22, 0)
    # The answer's blocks serve the next turn, too: 22 tokens have KV, five blocks are full.
    again, rows, cached = run_one(harness, device, 1, [*text, 7, 8], max_tokens=1)
    assert (rows, cached) == (25 - 20, 20)
    assert again == solo([*text, 7, 8], 1, 0, [], 64)[0]
    # All but the last token may come from the cache, never that one: its row gives the answer.
    _, rows, cached = run_one(harness, device, 2, prompt[:16], max_tokens=1)
    assert (rows, cached) == (4, 12)
    _, rows, cached = run_one(harness, device, 3, prompt[:16], logits=True)
    assert (rows, cached) == (16, 0)


def test_a_chain_outlives_the_blocks_of_another():
    """Two compute one prompt at once: the blocks of the first are known, those of the second are
    not, until the first's are evicted."""
    harness = Harness(num_blocks=13, block_tokens=4, slots=3, max_context=52, prefill_chunk=64)
    device = Device(13, 4, 3)
    prompt = list(range(13))
    harness.submit(0, prompt, max_tokens=1)
    harness.submit(1, prompt, max_tokens=16)
    harness.commit(device.step(harness.schedule()))
    harness.reap()
    assert harness.blocks() == (6, 4, 3, 13)
    harness.submit(2, [40] * 33, max_tokens=1)  # nine blocks: all of the first's three go
    texts = {}
    while (batch := harness.schedule()) is not None:
        harness.commit(device.step(batch))
        texts |= {state["id"]: state["tokens"] for state in harness.sequences()}
        harness.reap()
    assert len(texts[1]) == 29
    again, rows, cached = run_one(harness, device, 3, texts[1], max_tokens=1)
    assert (rows, cached) == (1, 28)
    assert again == solo(texts[1], 1, 0, [], 52)[0]


def test_salts_share_nothing():
    harness = Harness(num_blocks=32, block_tokens=4, slots=2, max_context=64, prefill_chunk=64)
    device = Device(32, 4, 2)
    prompt = list(range(17))
    hits = [
        run_one(harness, device, i, prompt, max_tokens=1, salt=salt)[2]
        for i, salt in enumerate(["", "a", "b", "a", "", "ab"])
    ]
    assert hits == [0, 0, 0, 16, 16, 0]


def test_the_longest_unused_goes_first():
    harness = Harness(num_blocks=8, block_tokens=4, slots=1, max_context=32, prefill_chunk=64)
    device = Device(8, 4, 1)
    first, second, third = ([start] * 12 + [49] for start in (1, 2, 3))
    for request, prompt in enumerate([first, second, first]):  # 3 + 3 blocks stay
        run_one(harness, device, request, prompt, max_tokens=1)
    assert harness.blocks() == (2, 0, 6, 8)
    run_one(harness, device, 3, third, max_tokens=1)  # needs 4: the end of the second goes
    assert run_one(harness, device, 4, first, max_tokens=1)[2] == 12
    assert run_one(harness, device, 5, second, max_tokens=1)[2] < 12


def test_without_sharing_nothing_stays():
    harness = Harness(
        num_blocks=8, block_tokens=4, slots=1, max_context=32, prefill_chunk=64, share=False
    )
    device = Device(8, 4, 1)
    for request in range(2):
        assert run_one(harness, device, request, [5] * 13, max_tokens=1)[1:] == (13, 0)
        assert harness.blocks() == (8, 0, 0, 8)


@pytest.mark.parametrize("share", [True, False])
def test_one_prompt_is_computed_for_all_who_wait_for_it(share):
    """Six tokens in blocks of two, in steps of two: the others compute the sixth, in a copy of the
    third block, whether prefixes are kept or not.
    """
    harness = Harness(
        num_blocks=40, block_tokens=2, slots=4, max_context=16, prefill_chunk=2, share=share
    )
    device = Device(40, 2, 4)
    for request in (1, 2, 3):
        harness.submit(
            request, [7, 8, 9, 10, 11, 12], max_tokens=4, same_prompt_as=int(request > 1)
        )
    harness.submit(4, [1], max_tokens=20)
    first, order = {}, []
    while (batch := harness.schedule()) is not None:
        order.append(batch["ids"])
        for s, request in enumerate(batch["ids"]):
            first.setdefault(request, int(batch["start"][s]))
        harness.commit(device.step(batch))
    texts = {tuple(state["tokens"]) for state in harness.sequences() if state["id"] < 4}
    assert len(texts) == 1
    assert first == {1: 0, 2: 5, 3: 5, 4: 0}
    assert order[:3] == [[1], [1], [1]], "three chunks of the prompt"
    assert order[3] == [1, 2, 3], "the next step's rows are theirs"
    assert order[4] == [1, 2, 3, 4]


def test_a_request_does_not_wait_for_one_that_is_gone():
    harness = Harness(num_blocks=8, block_tokens=2, slots=2, max_context=8, prefill_chunk=2)
    device = Device(8, 2, 2)
    harness.submit(1, [7, 8, 9, 10], max_tokens=2)
    harness.submit(2, [7, 8, 9, 10], max_tokens=2, same_prompt_as=1)
    harness.submit(3, [5], max_tokens=2, same_prompt_as=99)
    batch = harness.schedule()
    assert batch["ids"] == [1]
    harness.commit(device.step(batch))
    assert harness.end(1)
    harness.reap()
    assert harness.schedule()["ids"] == [2]
