"""The options that a user can set once for all: config.toml and MMENGINE_* environment variables.

One table names every option with its type and range; the command line, the environment and the
file are read through it, so the same words are valid in all three. The command line beats the
environment, the environment beats the file. Keys are option names with underscores; where an
option has two names ("temp" and "temperature"), either will do.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.errors import UsageError
from mmengine.messages import quoted

Value = str | int | float | bool

_MAX_CONFIG_BYTES = 1 << 20
_KINDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_BOOLS = {"1": True, "true": True, "yes": True, "on": True}
_BOOLS |= {"0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One option: its name with underscores, its type, the values it may have, its other name."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    help: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    alias: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the alias if there is one."""
        return (self.name, self.alias) if self.alias else (self.name,)

    @property
    def flags(self) -> tuple[str, ...]:
        """The option as it is typed, the short form first: "-n", "--max-tokens"."""
        flags = [("--" if len(name) > 1 else "-") + name.replace("_", "-") for name in self.names]
        return tuple(sorted(flags, key=len))

    @property
    def flag(self) -> str:
        """The short form of the option, which errors name."""
        return self.flags[0]

    def parse(self, text: str, where: str) -> Value:
        """`text` as a value of this option; UsageError naming `where` if it is none."""
        value: Value | None = None
        if self.kind is bool:
            value = _BOOLS.get(text.strip().lower())
        else:
            try:
                value = self.kind(text)
            except ValueError:
                value = None
        if value is None:
            raise self._error(text, where)
        return self.check(value, where)

    def check(self, value: object, where: str) -> Value:
        """`value` if it has this option's type and range; else UsageError naming `where`."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, str | int | float) or type(value) is not self.kind:
            raise self._error(value, where)
        if self.choices and value not in self.choices:
            raise self._error(value, where)
        if self.minimum is not None and isinstance(value, int) and value < self.minimum:
            raise self._error(value, where)
        return value

    def _error(self, value: object, where: str) -> UsageError:
        expected = _KINDS[self.kind]
        if self.choices:
            expected = "one of " + ", ".join(self.choices)
        elif self.minimum is not None:
            expected += f" of at least {self.minimum}"
        return UsageError(f"{where}: expected {expected}, got {quoted(value)}", where=where)


MODEL = Setting(
    "model",
    str,
    "directory, GGUF file, hub repository, smollm2 (the default, a small demo) or "
    "synthetic:NAME[,layers=N], random weights without a tokenizer, for measurements: of "
    "mistral-medium-3.5, llama-3.2-1b or the shapes in a params.json",
)

# Options of the Engine; the names are those of its arguments.
ENGINE_SETTINGS = (
    Setting(
        "device", str, "auto, cpu, cuda or cuda:N, or ref, the slow specification (default auto)"
    ),
    Setting(
        "weight_dtype",
        str,
        "type of the weights in memory; auto is as stored, int8 and int4 quantise inputs, too",
        choices=("auto", "f32", "bf16", "fp8", "int8", "int4"),
    ),
    Setting(
        "kv_dtype",
        str,
        "type of the KV cache; auto is f32 beside f32 weights, else bf16; fp8 is half of bf16",
        choices=("auto", "f32", "bf16", "fp8"),
    ),
    Setting("max_context", int, "tokens of context (default: the most that fits)", minimum=1),
    Setting("max_batch", int, "sequences that run at once", minimum=1),
    Setting("threads", int, "CPU threads (default: all cores)", minimum=1),
    Setting("prefill_chunk", int, "most prompt tokens computed in one step", minimum=1),
    Setting("seed", int, "seed of the random draws", minimum=0),
    Setting("prefix_cache", bool, "begin after the tokens whose KV is there (default on)"),
    Setting("text_only", bool, "without the vision tower, which this version does not compute"),
    Setting("allow_nonfinite", bool, "load weights that hold NaN or infinity"),
)

# Options of SamplingParams, which checks the ranges.
SAMPLING_SETTINGS = (
    Setting(
        "max_tokens",
        int,
        "most tokens to generate (default: to the end of the text or context)",
        alias="n",
    ),
    Setting(
        "temp",
        float,
        "temperature; 0 is greedy (default: the model's advice)",
        alias="temperature",
    ),
    Setting("top_p", float, "smallest set of tokens with this probability (default 1)"),
    Setting("top_k", int, "only the K likeliest tokens; 0 is all (default 0)"),
    Setting("min_p", float, "only tokens of this share of the likeliest's probability (default 0)"),
    Setting("presence_penalty", float, "lowers tokens that the answer has, -2 to 2 (default 0)"),
    Setting("frequency_penalty", float, "the same for each time it has them (default 0)"),
    Setting("repetition_penalty", float, "divides tokens of prompt and answer (default 1)"),
)

SETTINGS = {name: s for s in (MODEL, *ENGINE_SETTINGS, *SAMPLING_SETTINGS) for name in s.names}


def config_path(environ: Mapping[str, str]) -> Path:
    """Where config.toml lives: $XDG_CONFIG_HOME/mmengine, or ~/.config/mmengine."""
    return xdg_home(environ, "XDG_CONFIG_HOME", ".config") / "mmengine" / "config.toml"


def xdg_home(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """The folder that `variable` names if it is absolute, else `fallback` in the home folder."""
    value = environ.get(variable, "")
    if os.path.isabs(value):
        return Path(value)
    return Path(environ.get("HOME") or "/") / fallback


def load_settings(environ: Mapping[str, str]) -> dict[str, Value]:
    """Values set by config.toml and, over them, by MMENGINE_<NAME>; UsageError for a bad one.

    They are keyed by Setting.name, whichever name was used; both names in one place are an error.
    An empty variable counts as unset. Variables of other names are left to other parts of the
    package; keys of other names in the file are errors.
    """
    values = _load_file(config_path(environ))
    used: dict[str, str] = {}
    for name, setting in SETTINGS.items():
        variable = "MMENGINE_" + name.upper()
        text = environ.get(variable, "")
        if text:
            _check_once(used, setting, variable, variable)
            values[setting.name] = setting.parse(text, variable)
    return values


def _check_once(used: dict[str, str], setting: Setting, name: str, where: str) -> None:
    """UsageError if `setting` was set before by its other name; `used` holds the names so far."""
    other = used.setdefault(setting.name, name)
    if other != name:
        raise UsageError(f"{where}: sets the same option as {other}, expected one of them")


def _load_file(path: Path) -> dict[str, Value]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path}: could not be read: {error.strerror}", file=str(path)) from error
    if len(data) > _MAX_CONFIG_BYTES:
        raise UsageError(
            f"{path}: expected at most {_MAX_CONFIG_BYTES} bytes, got more", file=str(path)
        )
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}", file=str(path)) from error
    values: dict[str, Value] = {}
    used: dict[str, str] = {}
    for key, value in table.items():
        setting = SETTINGS.get(key)
        if setting is None:
            known = ", ".join(sorted(SETTINGS))
            raise UsageError(
                f"{path}: unknown key {quoted(key)}, expected one of {known}", file=str(path)
            )
        _check_once(used, setting, key, f"{path}: {key}")
        values[setting.name] = setting.check(value, f"{path}: {key}")
    return values
