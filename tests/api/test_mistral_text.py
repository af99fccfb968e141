"""Text and chat on a directory as Mistral ships it, with tekken.json."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_tekken import make_tekken
from make_tiny_model import make_tiny_model

import mmengine
from mmengine import errors
from mmengine.inspect_model import inspect_model
from mmengine.verify import verify_model
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


@pytest.fixture(scope="module")
def mistral_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the vocabulary and the file names of Mistral 7B Instruct v0.3."""
    path = tmp_path_factory.mktemp("mistral-7b")
    make_tiny_model(path, layout="mistral", vocab=32768)
    package = importlib.util.find_spec("mistral_common")
    assert package is not None
    assert package.origin is not None
    shipped = Path(package.origin).parent / "data/mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(shipped, path / "tokenizer.model.v3")
    return path


def test_mistral_7b_generates_and_chats(mistral_7b: Path) -> None:
    with mmengine.Engine(mistral_7b, device="cpu") as engine:
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        done = engine.generate("Hello", greedy(max_tokens=6))
        assert done.prompt_token_ids == [1, 23325]
        assert done.text == tokenizer.decode(done.token_ids, continues=True)
        chat = engine.chat([{"role": "user", "content": "Hello"}], greedy(max_tokens=6))
        assert chat.prompt_token_ids == [1, 3, 23325, 4]
        assert chat.content == tokenizer.decode(chat.token_ids)
        with pytest.raises(errors.RequestError, match="no efforts") as caught:
            engine.chat([{"role": "user", "content": "Hello"}], reasoning_effort="high")
    assert caught.value.param == "reasoning_effort"


def test_the_sentence_piece_file_is_named(mistral_7b: Path) -> None:
    texts = {check.name: check.detail for check in verify_model(mistral_7b)}
    assert texts["vocabulary"] == "tokenizer.model.v3 has 32768 tokens, the config 32768"
    assert inspect_model(mistral_7b)["tokenizer"] == "tokenizer.model.v3"


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, layout="mistral", vocab=VOCAB - 1)
    make_tekken(tmp_path / "tekken.json", vocab_size=VOCAB, num_special_tokens=1000)
    with pytest.raises(errors.ModelFormatError, match=r"3000.*2999") as caught:
        mmengine.Engine(tmp_path, device="cpu")
    assert caught.value.code == "vocab_size"
