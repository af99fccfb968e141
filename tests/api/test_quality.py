"""The demo model answers as it should: perplexity by weight type, one text whatever the batch.

The text is the head of the GNU GPL version 3. 18.833 is the exponential of the mean negative
log-likelihood of its tokens 2 to 512, from an exact F32 computation on the dequantised model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmengine
from support.numpy_llama import log_softmax
from support.outcomes import greedy, outcome

pytestmark = pytest.mark.model

EXACT = 18.833
TEXT = (Path(__file__).parents[1] / "data" / "gpl3_head.txt").read_text("ascii")


def token_ids(engine: mmengine.Engine, text: str) -> list[int]:
    """The ids of plain text as the engine itself reads a prompt."""
    params = mmengine.SamplingParams(max_tokens=1, temperature=0.0)
    return list(engine.generate(text, params).prompt_token_ids)


def perplexity(engine: mmengine.Engine, ids: list[int]) -> float:
    """exp of the mean negative log-likelihood of ids[1:], each given those before it."""
    logprobs = log_softmax(engine.logits(ids)[:-1])
    return float(np.exp(-logprobs[np.arange(len(ids) - 1), ids[1:]].mean()))


@pytest.fixture(scope="module")
def f32_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model converted without rounding its dequantised weights."""
    from mmengine import cache, convert

    destination = tmp_path_factory.mktemp("f32") / "smollm2"
    convert.convert(cache.fetch("smollm2"), destination, weight_dtype="f32")
    return destination


def measured(directory: Path, **options: str) -> float:
    with mmengine.Engine(str(directory), device="cpu", **options) as engine:
        ids = token_ids(engine, TEXT)
        assert len(ids) >= 512
        return perplexity(engine, ids[:512])


def test_f32_weights(f32_directory: Path) -> None:
    assert measured(f32_directory) == pytest.approx(EXACT, rel=0.005)


@pytest.mark.parametrize("kv_dtype", ["auto", "f32"])
def test_bf16_weights(kv_dtype: str, smollm2: Path) -> None:
    assert measured(smollm2, kv_dtype=kv_dtype) == pytest.approx(EXACT, rel=0.005)


def test_fp8_weights(smollm2: Path) -> None:
    value = measured(smollm2, weight_dtype="fp8")
    assert 0.97 * EXACT < value <= 1.03 * EXACT


def test_fp8_kv(smollm2: Path) -> None:
    """An independent computation in f32 with K and V rounded to e4m3 gives 19.656."""
    value, bf16 = measured(smollm2, kv_dtype="fp8"), measured(smollm2)
    print(f"perplexity: {value:.4f} with KV in fp8, {bf16:.4f} in bf16")
    assert 1.03 < value / bf16 < 1.05


CUTS = {"bf16": {None: (0, 3, 6), 1: (3,), 16: (0, 6)}, "fp8": {None: (6,), 16: (3,)}}


@pytest.mark.parametrize("weight_dtype", CUTS)
def test_a_paragraph_whatever_the_batch(weight_dtype: str, smollm2: Path) -> None:
    """Ids and logprobs: alone, first, middle and last of seven, prompt cut at 1, 16 and not."""
    paragraph = TEXT[600:1100]
    others = [TEXT[at : at + length] for at, length in
              ((0, 30), (100, 200), (350, 90), (700, 400), (1200, 5), (1500, 140))]  # fmt: skip
    outcomes = {}
    for prefill_chunk, places in CUTS[weight_dtype].items():
        engine = mmengine.Engine(
            str(smollm2), device="cpu", weight_dtype=weight_dtype, prefill_chunk=prefill_chunk
        )
        with engine:
            alone = engine.generate(paragraph, greedy(max_tokens=20))
            outcomes[f"alone, chunk {prefill_chunk}"] = outcome(alone)
            for place in places:
                batch = [*others[:place], paragraph, *others[place:]]
                completion = engine.generate(batch, greedy(max_tokens=20))[place]
                outcomes[f"place {place}, chunk {prefill_chunk}"] = outcome(completion)
    expected = outcomes["alone, chunk None"]
    assert len(expected[0]) == 20
    for case, result in outcomes.items():
        assert result == expected, case
