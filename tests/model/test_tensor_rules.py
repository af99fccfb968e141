"""Dtypes and shapes of weights and of their scales, told from the headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmengine import errors
from mmengine._testing_model import Checkpoint
from support.family_checkpoints import HIDDEN, LAYERS, family_tensors, write_family

BF16, F32 = ml_dtypes.bfloat16, np.float32
STEM = {
    "hf": "model.language_model.layers.1.mlp.down_proj",
    "mistral": "layers.1.feed_forward.w2",
}
SCALES = {
    "hf": ("weight_scale_inv", "activation_scale"),
    "mistral": ("qscale_weight", "qscale_act"),
}


def opened(path: Path, form: str, name: str, tensor: Any) -> Checkpoint:
    """A checkpoint with one tensor replaced."""
    tensors = family_tensors(form, vision=False)
    assert name in tensors
    tensors[name] = tensor
    return Checkpoint(write_family(path, form, tensors), LAYERS, fixed=True)


@pytest.mark.parametrize("form", ["hf", "mistral"])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(
    ("which", "shape"), [(0, ()), (0, (1,)), (0, (HIDDEN,)), (1, ()), (1, (1,))]
)
def test_good_scales(form: str, dtype: Any, which: int, shape: Any, tmp_path: Path) -> None:
    name = f"{STEM[form]}.{SCALES[form][which]}"
    checkpoint = opened(tmp_path, form, name, np.full(shape, 0.5, dtype))
    ours = f"layers.1.down_proj.{('weight_scale', 'input_scale')[which]}"
    dtype_name, data = checkpoint.tensor(ours)
    assert dtype_name == {BF16: "bf16", F32: "f32"}[dtype]
    assert data.shape[:-1] == shape


@pytest.mark.parametrize("form", ["hf", "mistral"])
@pytest.mark.parametrize(
    ("which", "shape", "expected"),
    [
        (0, (2,), f"expected shape [] or [1] or [{HIDDEN}] of a scale, got [2]"),
        (0, (HIDDEN, 1), f"expected shape [] or [1] or [{HIDDEN}] of a scale, got [{HIDDEN}, 1]"),
        (0, (0,), f"expected shape [] or [1] or [{HIDDEN}] of a scale, got [0]"),
        (1, (HIDDEN,), f"expected shape [] or [1] of a scale, got [{HIDDEN}]"),
        (1, (1, 1), "expected shape [] or [1] of a scale, got [1, 1]"),
    ],
)
def test_bad_shapes_of_scales(
    form: str, which: int, shape: Any, expected: str, tmp_path: Path
) -> None:
    name = f"{STEM[form]}.{SCALES[form][which]}"
    with pytest.raises(errors.ModelFormatError) as caught:
        opened(tmp_path, form, name, np.ones(shape, BF16))
    assert (caught.value.code, caught.value.tensor) == ("shape", name)
    assert f"tensor '{name}': {expected}" in str(caught.value)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8, ml_dtypes.float8_e4m3fn])
def test_bad_dtypes_of_scales(which: int, dtype: Any, tmp_path: Path) -> None:
    name = f"{STEM['mistral']}.{SCALES['mistral'][which]}"
    with pytest.raises(errors.ModelFormatError, match="expected dtype f32 or bf16") as caught:
        opened(tmp_path, "mistral", name, np.ones((), dtype))
    assert (caught.value.code, caught.value.tensor) == ("dtype", name)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_bad_dtypes_of_weights(dtype: Any, tmp_path: Path) -> None:
    name = f"{STEM['hf']}.weight"
    with pytest.raises(errors.ModelFormatError, match="f32, bf16, f16 or e4m3") as caught:
        opened(tmp_path, "hf", name, np.ones((HIDDEN, 2), dtype))
    assert (caught.value.code, caught.value.tensor) == ("dtype", name)


def test_a_scale_beside_a_weight_that_has_no_use_for_it(tmp_path: Path) -> None:
    weight = np.ones((HIDDEN, 20), BF16)
    with pytest.raises(errors.ModelFormatError) as caught:
        opened(tmp_path, "hf", f"{STEM['hf']}.weight", weight)
    assert caught.value.code == "dtype"
    assert f"'{STEM['hf']}.weight' is bf16" in str(caught.value)
    assert "expected an e4m3 tensor beside a scale" in str(caught.value)
