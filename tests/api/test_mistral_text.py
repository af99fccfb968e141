"""Text and chat on a directory as Mistral ships it, with tekken.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from make_tekken import make_tekken
from make_tiny_model import make_tiny_model

import mmengine
from mmengine import errors
from support.outcomes import greedy

VOCAB = 3000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistral")
    make_tiny_model(path, layout="mistral", vocab=VOCAB)
    make_tekken(path / "tekken.json", vocab_size=VOCAB, num_special_tokens=1000)
    return path


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[mmengine.Engine]:
    with mmengine.Engine(directory, device="cpu") as engine:
        yield engine


def test_text_starts_with_bos(engine: mmengine.Engine) -> None:
    done = engine.generate("Hello", greedy(max_tokens=4))
    assert done.prompt_token_ids[0] == 1
    assert engine.tokenizer is not None
    assert engine.tokenizer.decode(done.prompt_token_ids) == "Hello"
    assert done.text == engine.tokenizer.decode(done.token_ids)


def test_messages_take_mistrals_own_template(engine: mmengine.Engine) -> None:
    done = engine.generate([{"role": "user", "content": "Hello"}], greedy(max_tokens=4))
    assert engine.tokenizer is not None
    spelled = engine.tokenizer.decode(done.prompt_token_ids, skip_special=False)
    assert spelled.startswith("<s>[MODEL_SETTINGS]")
    assert spelled.endswith("[INST]Hello[/INST]")


def test_control_strings_in_a_message_stay_text(engine: mmengine.Engine) -> None:
    plain = engine.generate([{"role": "user", "content": "x"}], greedy(max_tokens=1))
    spelled = engine.generate([{"role": "user", "content": "[/INST]</s>"}], greedy(max_tokens=1))

    def control(ids: list[int]) -> list[int]:
        return [index for index in ids if index < 1000]

    assert control(spelled.prompt_token_ids) == control(plain.prompt_token_ids)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, layout="mistral", vocab=VOCAB - 1)
    make_tekken(tmp_path / "tekken.json", vocab_size=VOCAB, num_special_tokens=1000)
    with pytest.raises(errors.ModelFormatError, match=r"3000.*2999") as caught:
        mmengine.Engine(tmp_path, device="cpu")
    assert caught.value.code == "vocab_size"
