"""The names of the Medium 3.5 family in every published form, and what is missing or unused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmengine import errors
from mmengine._testing_model import Checkpoint
from support.family_checkpoints import (
    LAYERS,
    PREFIXES,
    TOWER_LAYERS,
    family_tensors,
    write_draft,
    write_family,
)

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WITH_TOWER = [form for form in PREFIXES if form != "hf text"]


def opened(path: str, vision: bool = True, **options: Any) -> Checkpoint:
    options = {"fixed": True, "tied": False, **options}
    return Checkpoint(path, LAYERS, vision_layers=TOWER_LAYERS if vision else 0, **options)


def text_names() -> set[str]:
    names = {"embed_tokens", "lm_head", "norm"}
    for n in range(LAYERS):
        names |= {f"layers.{n}.input_norm", f"layers.{n}.post_norm"}
        for linear in LINEARS:
            at = f"layers.{n}.{linear}"
            names |= {at, f"{at}.weight_scale", f"{at}.input_scale"}
    return names


def vision_names() -> set[str]:
    names = {"vision.patch_conv", "vision.ln_pre"}
    names |= {f"projector.{stem}" for stem in ("norm", "merging_layer", "linear_1", "linear_2")}
    for n in range(TOWER_LAYERS):
        names |= {f"vision.layers.{n}.{stem}" for stem in (*LINEARS, "input_norm", "post_norm")}
    return names


@pytest.mark.parametrize("form", WITH_TOWER)
def test_every_tensor_has_a_name(form: str, tmp_path: Path) -> None:
    checkpoint = opened(write_family(tmp_path, form))
    assert set(checkpoint.names()) == text_names() | vision_names()
    assert checkpoint.warnings() == []
    assert checkpoint.bytes() == sum(t.nbytes for t in family_tensors(form).values())


def test_all_forms_give_the_same_tensors(tmp_path: Path) -> None:
    """The writer draws in one order, so a name that means another tensor shows."""
    first, *others = (opened(write_family(tmp_path / form, form)) for form in WITH_TOWER)
    for name in first.names():
        dtype, data = first.tensor(name)
        for other in others:
            assert other.tensor(name)[0] == dtype
            np.testing.assert_array_equal(other.tensor(name)[1], data, err_msg=name)


def test_a_text_only_export(tmp_path: Path) -> None:
    path = write_family(tmp_path, "hf text", family_tensors("hf text", vision=False))
    assert set(opened(path, vision=False).names()) == text_names()
    checkpoint = opened(path)
    assert set(checkpoint.names()) == text_names()
    assert len(checkpoint.warnings()) == 1
    assert "the config has a vision tower, the files have none" in checkpoint.warnings()[0]


@pytest.mark.parametrize("form", WITH_TOWER)
def test_a_tower_is_passed_over_where_the_config_has_none(form: str, tmp_path: Path) -> None:
    checkpoint = opened(write_family(tmp_path, form), vision=False)
    assert set(checkpoint.names()) == text_names()
    assert checkpoint.warnings() == []


@pytest.mark.parametrize("form", WITH_TOWER)
def test_missing_tensors_of_the_tower_are_listed(form: str, tmp_path: Path) -> None:
    tensors = family_tensors(form)
    gone = [name for name in tensors if "ln_pre" in name or "merging_layer" in name]
    assert len(gone) == 2
    for name in gone:
        del tensors[name]
    with pytest.raises(errors.ModelFormatError, match="missing 2 of the tensors") as caught:
        opened(write_family(tmp_path, form, tensors))
    for name in gone:
        assert name.removeprefix("model.") in str(caught.value)


@pytest.mark.parametrize("form", list(PREFIXES))
def test_every_missing_activation_scale_is_listed(form: str, tmp_path: Path) -> None:
    tensors = family_tensors(form, vision=False)
    gone = [name for name in tensors if name.endswith(("activation_scale", "qscale_act"))]
    assert len(gone) == 7 * LAYERS
    for name in gone:
        del tensors[name]
    path = write_family(tmp_path, form, tensors)
    with pytest.raises(errors.ModelFormatError) as caught:
        opened(path, vision=False)
    assert caught.value.code == "missing_tensor"
    assert f"missing {7 * LAYERS} of the tensors" in str(caught.value)
    for name in gone:
        assert name in str(caught.value)
    unscaled = opened(path, vision=False, fixed=False)  # weights alone, or dynamic activations
    assert not any(name.endswith("input_scale") for name in unscaled.names())


def test_a_linear_that_is_not_fp8_needs_no_scale(tmp_path: Path) -> None:
    tensors = family_tensors()
    stem = "model.language_model.layers.0.mlp.down_proj."
    for scale in ("weight_scale_inv", "activation_scale"):
        del tensors[stem + scale]
    tensors[stem + "weight"] = tensors[stem + "weight"].astype(ml_dtypes.bfloat16)
    assert not opened(write_family(tmp_path, "hf", tensors)).has("layers.0.down_proj.input_scale")


@pytest.mark.parametrize("form", ["hf", "mistral"])
def test_a_missing_head_is_an_error_unless_it_is_tied(form: str, tmp_path: Path) -> None:
    tensors = family_tensors(form)
    head = PREFIXES[form][1] + ".weight"
    del tensors[head]
    path = write_family(tmp_path, form, tensors)
    with pytest.raises(errors.ModelFormatError, match=f"missing 1 of the tensors.*: {head};"):
        opened(path)
    assert not opened(path, tied=True).has("lm_head")


def test_scales_of_a_kv_cache_give_one_warning(tmp_path: Path) -> None:
    tensors = family_tensors("mistral")
    for n in range(LAYERS):
        for which in ("k", "v"):
            name = f"layers.{n}.attention.{which}_fake_quantizer.qscale_act"
            tensors[name] = np.array(1, ml_dtypes.bfloat16)
    checkpoint = opened(write_family(tmp_path, "mistral", tensors))
    assert len(checkpoint.warnings()) == 1
    assert "4 scales of a KV cache in FP8 are not used" in checkpoint.warnings()[0]


def test_a_draft_head(tmp_path: Path) -> None:
    checkpoint = opened(write_draft(tmp_path), vision=False)
    assert checkpoint.draft_head()
    linear = {"eagle_linear", "eagle_linear.weight_scale", "eagle_linear.input_scale"}
    assert set(checkpoint.names()) == text_names() - {"embed_tokens", "lm_head"} | linear
    assert not opened(write_family(tmp_path / "model")).draft_head()


def test_a_draft_head_s_missing_tensors_are_listed(tmp_path: Path) -> None:
    tensors = family_tensors("mistral", draft=True)
    gone = ["eagle_linear.qscale_act", "norm.weight", "layers.1.feed_forward.w2.weight"]
    for name in gone:
        del tensors[name]
    with pytest.raises(errors.ModelFormatError, match="missing 3 of the tensors") as caught:
        opened(write_draft(tmp_path, tensors), vision=False)
    for name in gone:
        assert name in str(caught.value)


def test_a_layer_that_the_config_lacks_is_refused(tmp_path: Path) -> None:
    tensors = family_tensors()
    name = f"model.language_model.layers.{LAYERS}.mlp.up_proj.weight"
    tensors[name] = np.zeros(1, np.float32)
    with pytest.raises(errors.ModelFormatError, match="hold 1 tensors of layers beyond") as caught:
        opened(write_family(tmp_path, "hf", tensors))
    assert (caught.value.code, caught.value.tensor) == ("layers", name)
