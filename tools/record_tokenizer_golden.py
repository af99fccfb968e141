"""Records what llama.cpp makes of texts and conversations: tests/python/data/*_golden.json.

Needs `pip install xllamacpp jinja2 gguf` and the GGUF file of SmolLM2-135M-Instruct:

    python tools/record_tokenizer_golden.py SmolLM2-135M-Instruct.Q4_1.gguf

Texts are tokenised under every pre-tokeniser the converter knows, on the vocabulary of the file.
Conversations are rendered with the file's own template and tokenised with control tokens allowed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import xllamacpp
from jinja2.sandbox import ImmutableSandboxedEnvironment

PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe")
DATA = Path(__file__).parent.parent / "tests" / "python" / "data"

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello, world!",
    "I'm sure you've seen that they'll say it's what we'd done; don't DON'T i'M 'Tis",
    "def main(argc: int) -> None:\n    print(f'{argc!r}')\n\n\n    return\t\tNone\r\n",
    "3.14159 and 1,234,567.89 or 0xDEADBEEF, 12345678901234567890, 1e-5, 1st 2nd",
    "\u0661\u0662\u0663 \u2167 \u00bd \u00b2 \u2460 \U0001d7d8 \u0969\u096a",
    "Gr\u00fc\u00dfe aus K\u00f6ln, na\u00efve fa\u00e7ade, \u00c5ngstr\u00f6m, e\u0301 o\u0308",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! "
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f "
    "\uc548\ub155\ud558\uc138\uc694",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 "
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 "
    "\u2764\ufe0f \U0001f44d\U0001f3fd",
    "\U00010348\U0001d11e\U00020000\U000e0041\U0010fffd\ufffd\ufeff\u200b\u200e",
    "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u1680h\u180ei\x0bj\x0ck\x1cl\x1fm",
    "null\x00byte \x01\x02\x03\x04 \x7f",
    "",
    " ",
    "_ __ ___ -- --- ... !!! ?!? (([[{{<>}}]])) @#$%^&*~`|\\/",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE \u2019s \u2019t '\u017f '\u212a",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<repo_name>",
    "</s>",
    "[INST]",
    "<s>",
    "a<|im_end|>b",
    "<|im_start|><|im_start|>user\nhi<|im_end|>",
    "<|im_ end|>",
    "< |im_end|>",
    "https://example.org/a?b=c&d=%20#frag user@example.com C:\\dir\\file.txt",
    "SELECT * FROM t WHERE x >= 10 AND y <> 'z';  -- comment",
    "camelCaseAndSnake_case and SCREAMING_CASE2000 v1.2.3-rc4",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
]
FENCES = ["x{}", "{}x", "x{}y", "{}", "x {} y", "\n{}\n"]
RUNS = ["  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\n  \n", "\t \t", "      ", " \u00a0 "]

CONVERSATIONS = [
    [("user", "hi")],
    [("user", "What is 2+2?"), ("assistant", "4"), ("user", "And 3+3?")],
    [("system", "You are terse."), ("user", "Who are you?")],
    [("system", ""), ("user", "")],
    [("user", " leading and trailing "), ("assistant", "\n\nlines\n\n"), ("user", "\ttab")],
    [
        ("user", "Gr\u00fc\u00dfe \U0001f600 \u4f60\u597d"),
        ("assistant", "ok"),
        ("assistant", "again"),
    ],
    [("user", "a"), ("user", "b"), ("user", "12345")],
    [("system", "Line one\nLine two\n"), ("user", "code:\n```\nx = 1\n```"), ("assistant", "done")],
]


def texts() -> list[str]:
    """The sentences, whitespace runs in contexts, and seeded random text of every plane."""
    draw = random.Random(20240611)
    planes = [(0x20, 0x7E), (0x20, 0x24F), (0x370, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0xD7FF)]
    planes += [(0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0xE0000, 0x10FFFF)]
    found = list(SENTENCES)
    found += [fence.format(run) for run in RUNS for fence in FENCES]
    for plane in planes:
        for length in (1, 3, 9, 30):
            found += ["".join(chr(draw.randint(*plane)) for _ in range(length)) for _ in range(3)]
    pieces = [*RUNS, *"abcXYZ019.,'!_-", "'s", "'LL", "word", " the", "\u00e9", "\u4e16", "\u0663"]
    found += ["".join(draw.choices(pieces, k=draw.randint(2, 24))) for _ in range(80)]
    return list(dict.fromkeys(found))


class Llama:
    """llama.cpp's tokenizer for one GGUF file, through its server on a free local port."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 256
        params.n_parallel = 1
        params.port = 0
        params.warmup = False
        self._server = xllamacpp.Server(params)

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Its ids, with control tokens recognised in the text or not."""
        body = {"content": text, "add_special": False, "parse_special": parse_special}
        request = urllib.request.Request(
            self._server.listening_address + "/tokenize",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            ids: list[int] = json.load(reply)["tokens"]
        return ids


def with_pre_tokenizer(source: Path, pre: str, folder: Path) -> Path:
    """A copy of the file that names another pre-tokeniser."""
    target = folder / f"{pre}.gguf"
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force"]
    subprocess.run([*command, "--pre-tokenizer", pre, source, target], check=True)
    return target


def template_of(path: Path) -> str:
    field = gguf.GGUFReader(path).get_field("tokenizer.chat_template")
    assert field is not None
    return str(field.contents())


def write(name: str, entries: list[dict[str, object]]) -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    (DATA / name).write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path, help="GGUF file of SmolLM2-135M-Instruct")
    source = parser.parse_args().gguf
    golden: list[dict[str, object]] = [{"text": text} for text in texts()]
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE_TOKENIZERS:
            llama = Llama(with_pre_tokenizer(source, pre, Path(folder)))
            for entry in golden:
                entry[pre] = llama.encode(str(entry["text"]))
    write("tokenizer_golden.json", golden)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(template_of(source))
    llama = Llama(source)
    chats: list[dict[str, object]] = []
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for prompt in (True, False):
            text = template.render(messages=messages, add_generation_prompt=prompt)
            ids = llama.encode(text, parse_special=True)
            chats.append({"messages": messages, "add_generation_prompt": prompt, "ids": ids})
    write("chat_golden.json", chats)


if __name__ == "__main__":
    main()
