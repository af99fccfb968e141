"""mm-run verify: whether a user's copy of a model is whole, undamaged and makes sense.

Every check says ok, warn, fail, or "not run" with the reason. All weights are read once.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mmengine.errors import Error, ModelNotFoundError, ResourceError
from mmengine.messages import quoted
from mmengine.progress import bar
from mmengine.synthetic import refuse_synthetic
from mmengine.verify_files import (
    StoredTensor,
    find_layout,
    known_digests,
    list_files,
    read_header,
)
from mmengine.verify_groups import bad_group_scales, find_groups, parameters
from mmengine.verify_values import Findings, is_scale, read_scales, scan, sibling_ratios

# Standard deviations of trained linears; a scale applied the wrong way leaves them far behind.
_SPREAD = (0.001, 0.5)
_SHOWN = 5
_HASH_BYTES = 4 << 20


@dataclass(frozen=True)
class Check:
    """One check: its name, "ok" | "warn" | "fail" | "not run", and what was found or why not."""

    name: str
    status: str
    detail: str


@dataclass
class _Copy:
    """What is known of the directory so far."""

    path: Path
    progress: bool | None
    files: list[str] = field(default_factory=list)
    index: dict[str, Any] | None = None
    tensors: list[StoredTensor] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)  # files with a sound header
    census: dict[str, Any] | None = None
    findings: Findings | None = None


def verify_model(path: Path, progress: bool | None = None) -> list[Check]:
    """Checks a checkpoint directory; `progress` is that of mmengine.progress.bar.

    Raises ModelNotFoundError when it has no config, UsageError for a synthetic model, which has no
    files; what else is wrong is in the checks.
    """
    refuse_synthetic(path, "to verify")
    if not any((path / name).is_file() for name in ("params.json", "config.json")):
        raise ModelNotFoundError(
            f"{path}: no params.json and no config.json, expected a checkpoint directory",
            where=str(path),
        )
    copy = _Copy(path, progress)
    checks: list[Check] = []
    for name, run in (
        ("layout", _layout),
        ("files", _files),
        ("headers", _headers),
        ("config", _config),
        ("loader", _loader),
        ("contents", _contents),
        ("vocabulary", _vocabulary),
        ("scales", _scales),
        ("values", _values),
        ("spread", _spread),
        ("checksums", _checksums),
        ("logits", _logits),
    ):
        try:
            status, detail = run(copy)
        except Error as error:
            status, detail = "fail", str(error)
        except OSError as error:
            status, detail = "fail", f"cannot be read: {error.strerror or error}"
        checks.append(Check(name, status, detail))
    return checks


_Answer = tuple[str, str]


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _layout(copy: _Copy) -> _Answer:
    layout = find_layout(copy.path)
    words = {"mistral": "Mistral", "hf": "Hugging Face"}
    read = words.pop(layout.name)
    if layout.other:
        other = words.popitem()[1]
        return "ok", f"both layouts are there; the {read} one is read, the {other} one never"
    return "ok", f"{read} layout"


def _files(copy: _Copy) -> _Answer:
    copy.files, problems, copy.index = list_files(copy.path, find_layout(copy.path))
    if problems:
        return "fail", f"{_some(problems)}; download what is missing"
    source = "listed by the index" if copy.index is not None else "found by name, without an index"
    size = sum((copy.path / name).stat().st_size for name in copy.files)
    return "ok", f"{len(copy.files)} with weights, {size / 1e9:.3f} GB, {source}"


def _headers(copy: _Copy) -> _Answer:
    if not copy.files:
        return "not run", "no file with weights is there"
    problems = []
    assigned = (copy.index or {}).get("weight_map")
    for name in copy.files:
        try:
            tensors = read_header(copy.path / name)
        except Error as error:
            problems.append(str(error))
            continue
        copy.whole.append(name)
        copy.tensors += tensors
    if assigned is not None:
        found = {(tensor.name, tensor.file) for tensor in copy.tensors}
        whole = set(copy.whole)
        problems += [
            f"{file}: tensor {quoted(name)} of the index is not in it"
            for name, file in sorted(assigned.items())
            if file in whole and (name, file) not in found
        ]
    if problems:
        return "fail", _some(problems)
    return "ok", f"{len(copy.tensors)} tensors fill their files exactly"


def _config(copy: _Copy) -> _Answer:
    from mmengine.forecast import census

    draft = any(tensor.name.startswith("eagle_linear.") for tensor in copy.tensors)
    config = copy.census = census(str(copy.path), draft=draft)
    rope = f"RoPE theta {config['rope_theta']:g}"
    stretched = f"x{config['rope_factor']:g} over {config['rope_original_context']:g} tokens"
    if config["rope_type"] == "yarn":
        rope += f", YaRN {stretched}, attention factor {config['rope_attention_factor']:.7g}"
    elif config["rope_type"] == "llama3":
        rope += f", Llama 3's scaling {stretched}"
    if config["warnings"]:
        return "warn", f"{rope}; {_some(config['warnings'])}"
    return "ok", rope


def _loader(copy: _Copy) -> _Answer:
    from mmengine.core import inspect

    found = inspect(copy.path)
    told = copy.census["warnings"] if copy.census is not None else []
    warnings = [warning for warning in found["warnings"] if warning not in told]
    text = f"all {len(found['tensors'])} tensors of a {found['kind']} are there"
    return ("warn", f"{text}; {_some(warnings)}") if warnings else ("ok", text)


def _contents(copy: _Copy) -> _Answer:
    if copy.census is None or not copy.tensors or len(copy.whole) < len(copy.files):
        return "not run", "it needs a config and whole files"
    counted = [t for t in copy.tensors if not is_scale(t.name) and "rotary_emb" not in t.name]
    groups = find_groups(copy.tensors)
    found = sum(
        parameters(groups[tensor.name], copy.census) if tensor.name in groups else tensor.items
        for tensor in counted
    )
    expected = sum(part["parameters"] for part in copy.census["components"])
    text = f"{found:,} parameters"
    total = (copy.index or {}).get("metadata", {})
    told = total.get("total_size") if isinstance(total, dict) else None
    held = sum(tensor.bytes for tensor in copy.tensors)
    if found != expected:
        status = "fail" if found < expected else "warn"
        return status, f"{text}, but the config calls for {expected:,}"
    if told is not None and told != held:
        return "warn", f"{text}, as the config says; {held} bytes, but the index says {told}"
    return "ok", f"{text}, as the config says; {held:,} bytes"


def _vocabulary(copy: _Copy) -> _Answer:
    from mmengine.vocabulary import load_tokenizer

    tokenizer = load_tokenizer(copy.path)
    if tokenizer is None:
        return "not run", "no tokenizer that is known; prompts must be token ids"
    if copy.census is None:
        return "not run", "it needs a config"
    tokens, size = tokenizer.vocab_size, copy.census["vocab_size"]
    if tokens > size:
        return "fail", (
            f"{tokenizer.file} has {tokens} tokens, but the config's vocabulary {size}; they are "
            "of different models"
        )
    return "ok", f"{tokenizer.file} has {tokens} tokens, the config {size}"


def _scales(copy: _Copy) -> _Answer:
    scales = read_scales(copy.path, copy.tensors)
    groups = find_groups(copy.tensors)
    if not scales and not groups:
        return "not run", "no weight is quantised with a scale" if copy.tensors else "no weights"
    if groups:
        problems = bad_group_scales(copy.path, groups)
        if problems:
            return "fail", f"scales of groups: {_some(problems)}"
        if not scales:
            return "ok", f"those of {len(groups)} matrices in groups finite, none negative"
    bad = [
        f"{name}: {float(values.min()):g}"
        for name, values in sorted(scales.items())
        if not bool(((values > 0) & (values < math.inf)).all())
    ]
    if bad:
        return "fail", f"not finite and positive: {_some(bad)}"
    ratios = sibling_ratios(scales)
    if ratios:
        name, ratio = max(ratios.items(), key=lambda item: item[1])
        return "warn", (
            f"{len(scales)} finite and positive; {len(ratios)} groups of linears with one input "
            f"have different activation scales, at most {ratio:.3g} times, at {name}; the largest "
            "of a group is used"
        )
    return "ok", f"{len(scales)} finite and positive; those of one input agree"


def _values(copy: _Copy) -> _Answer:
    if not copy.whole:
        return "not run", "no whole file with weights"
    scales = read_scales(copy.path, copy.tensors)
    total = sum((copy.path / name).stat().st_size for name in copy.whole)
    with bar(f"verifying {copy.path.name}", total, copy.progress) as advance:
        found = scan(copy.path, copy.whole, copy.tensors, scales, advance)
    copy.findings = found
    for what, wrong in (("values that are NaN or infinite", found.bad),
                        ("codes of -128", found.codes)):  # fmt: skip
        parts = [f"{label}: {count}, the first at {first}" for label, first, count in wrong]
        if parts:
            return "fail", f"{what}: {_some(parts)}; download it again"
    return "ok", f"all {found.tensors} tensors are finite"


def _spread(copy: _Copy) -> _Answer:
    spreads = copy.findings.spreads if copy.findings is not None else {}
    if not spreads:
        return "not run", "no linear with finite values was read"
    low, high = min(spreads, key=spreads.__getitem__), max(spreads, key=spreads.__getitem__)
    text = (
        f"standard deviations of {len(spreads)} linears from {spreads[low]:.3g} to "
        f"{spreads[high]:.3g}"
    )
    outside = [name for name in (low, high) if not _SPREAD[0] <= spreads[name] <= _SPREAD[1]]
    if outside:
        return "warn", (
            f"{text}, usual are {_SPREAD[0]} to {_SPREAD[1]} (Mistral Medium 3.5: 0.005 to 0.05); "
            f"look at {outside[0]}"
        )
    return "ok", text


def _checksums(copy: _Copy) -> _Answer:
    digests, source = known_digests(copy.path)
    if not digests:
        return "not run", "no manifest.json, and not in the form of a hub download"
    bad, checked = [], 0
    read = copy.findings.digests if copy.findings is not None else {}
    for name, digest in sorted(digests.items()):
        path = copy.path / name
        if name != path.name or not path.is_file():
            bad.append(f"{quoted(name)} is missing")
            continue
        found = read.get(name) if len(digest) == 64 else None
        if (found or _digest(path, digest)) != digest:
            bad.append(f"{name} is not what was published")
        checked += 1
    if bad:
        return "fail", f"{_some(bad)}; download it again (known from {source})"
    return "ok", f"{checked} files are as {source} has them"


def _digest(path: Path, like: str) -> str:
    """The digest of a file in the kind of `like`: SHA-256, or the SHA-1 of a git blob."""
    digest: Any = hashlib.sha256()
    if len(like) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(_HASH_BYTES):
            digest.update(data)
    return str(digest.hexdigest())


def _logits(copy: _Copy) -> _Answer:
    known = _known_logits(copy.path)
    if known is None:
        return "not run", "no recorded logits of this model"
    if not copy.findings or copy.findings.bad or copy.findings.codes:
        return "not run", "its weights are damaged"
    from mmengine.engine import Engine

    try:
        with Engine(copy.path, max_context=64, max_batch=1, progress=False) as engine:
            row = engine.logits(known["token_ids"])[-1]
    except ResourceError as error:
        return "not run", str(error)
    worst = max(
        abs(float(row[token]) - value)
        for token, value in zip(known["top_ids"], known["top_logits"], strict=True)
    )
    text = f"{known['model']}: after {len(known['token_ids'])} tokens"
    if int(row.argmax()) != known["top_ids"][0] or worst > known["tolerance"]:
        return "fail", (
            f"{text} token {int(row.argmax())} leads, expected {known['top_ids'][0]}; logits "
            f"differ by up to {worst:.3g}, expected at most {known['tolerance']}"
        )
    return "ok", f"{text} the likeliest are those recorded, logits within {worst:.3g}"


def _known_logits(path: Path) -> dict[str, Any] | None:
    """The record of a model that was converted from a file we know, else None."""
    from mmengine.files import read_object

    if not (path / "manifest.json").is_file():
        return None
    source = read_object(path / "manifest.json").get("source")
    digest = source.get("sha256") if isinstance(source, dict) else None
    text = resources.files("mmengine").joinpath("known_logits.json").read_text("ascii")
    records: list[dict[str, Any]] = json.loads(text)
    return next((record for record in records if record["source_sha256"] == digest), None)
