"""Writes a synthetic tekken.json: mistral-common's own words, later control tokens.

The published v11 to v15 files share their words with the v3 file that mistral-common ships, so ids
of text are those of the real models. Control tokens stand at the ids of Mistral Medium 3.5.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
from functools import cache
from pathlib import Path
from typing import Any

VERSIONS = ("v3", "v7", "v11", "v13", "v15")
VOCAB_SIZE = 131072
NUM_SPECIAL_TOKENS = 1000

# id -> (name, first version that has it)
_SPECIAL = {
    0: ("<unk>", 3),
    1: ("<s>", 3),
    2: ("</s>", 3),
    3: ("[INST]", 3),
    4: ("[/INST]", 3),
    5: ("[AVAILABLE_TOOLS]", 3),
    6: ("[/AVAILABLE_TOOLS]", 3),
    7: ("[TOOL_RESULTS]", 3),
    8: ("[/TOOL_RESULTS]", 3),
    9: ("[TOOL_CALLS]", 3),
    10: ("[IMG]", 3),
    11: ("<pad>", 3),
    12: ("[IMG_BREAK]", 3),
    13: ("[IMG_END]", 3),
    14: ("[PREFIX]", 3),
    15: ("[MIDDLE]", 3),
    16: ("[SUFFIX]", 3),
    17: ("[SYSTEM_PROMPT]", 3),
    18: ("[/SYSTEM_PROMPT]", 3),
    19: ("[TOOL_CONTENT]", 3),
    24: ("[AUDIO]", 7),
    25: ("[BEGIN_AUDIO]", 7),
    32: ("[ARGS]", 11),
    33: ("[CALL_ID]", 11),
    34: ("[THINK]", 13),
    35: ("[/THINK]", 13),
    36: ("[MODEL_SETTINGS]", 15),
    37: ("[/MODEL_SETTINGS]", 15),
}
_IMAGE = {"image_patch_size": 14, "max_image_size": 1540, "spatial_merge_size": 2}
_SETTINGS = {
    "reasoning_effort": {
        "type": "enum",
        "values": ["none", "high"],
        "accepts_none": True,
        "default": "none",
    }
}


@cache
def _shipped() -> dict[str, Any]:
    source = importlib.resources.files("mistral_common") / "data" / "tekken_240911.json"
    content: dict[str, Any] = json.loads(source.read_bytes())
    return content


def tekken(
    version: str = "v15",
    vocab_size: int = VOCAB_SIZE,
    num_special_tokens: int = NUM_SPECIAL_TOKENS,
) -> dict[str, Any]:
    """The content of the file; vocab_size counts control tokens and words.

    Calls share what is shipped: copy deeply before changing the result.
    """
    if version not in VERSIONS:
        raise ValueError(f"version: {version!r}, expected one of {', '.join(VERSIONS)}")
    words = vocab_size - num_special_tokens
    shipped = _shipped()
    most = len(shipped["vocab"])
    if not 256 <= words <= most or num_special_tokens <= max(_SPECIAL):
        raise ValueError(
            f"vocab_size {vocab_size} with {num_special_tokens} control tokens: {words} words, "
            f"expected 256 to {most}, and more than {max(_SPECIAL)} control tokens"
        )
    number = int(version[1:])
    names = [
        _SPECIAL[i][0] if i in _SPECIAL and _SPECIAL[i][1] <= number else f"<SPECIAL_{i}>"
        for i in range(num_special_tokens)
    ]
    content: dict[str, Any] = {
        "config": shipped["config"]
        | {
            "num_vocab_tokens": words,
            "default_vocab_size": vocab_size,
            "default_num_special_tokens": num_special_tokens,
            "version": version,
        },
        "vocab": shipped["vocab"][:words],
        "special_tokens": [
            {"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)
        ],
        "image": _IMAGE,
    }
    if number >= 15:
        content["model_settings_builder"] = _SETTINGS
    return content


def make_tekken(
    path: Path,
    version: str = "v15",
    vocab_size: int = VOCAB_SIZE,
    num_special_tokens: int = NUM_SPECIAL_TOKENS,
) -> None:
    """Writes the file; `path` is the file itself."""
    content = tekken(version, vocab_size, num_special_tokens)
    path.write_text(json.dumps(content), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the file to write, DIR/tekken.json")
    parser.add_argument("--version", default="v15", choices=VERSIONS)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--num-special-tokens", type=int, default=NUM_SPECIAL_TOKENS)
    options = parser.parse_args()
    make_tekken(options.path, options.version, options.vocab_size, options.num_special_tokens)


if __name__ == "__main__":
    main()
