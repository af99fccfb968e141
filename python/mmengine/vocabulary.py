"""Which tokenizer and chat format a model directory has.

Mistral's tekken.json first, then its SentencePiece file of the highest version: Mistral's own
tokenizer is the model's, and other files are made from it. tokenizer.json otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.synthetic import is_synthetic
from mmengine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mmengine.chat import ChatFormat
    from mmengine.mistral_chat import MistralChat
    from mmengine.mistral_sentence_piece import MistralSentencePiece
    from mmengine.mistral_tokenizer import MistralTokenizer

    AnyTokenizer = Tokenizer | MistralTokenizer | MistralSentencePiece
    AnyChatFormat = ChatFormat | MistralChat


def load_tokenizer(path: Path) -> AnyTokenizer | None:
    """The tokenizer of a directory; None when it has none that is known, or is a synthetic model.

    A file that is there and cannot be read is an error, whatever is beside it.
    """
    if is_synthetic(path):
        return None
    file = tokenizer_file(path)
    if file == "tekken.json":
        from mmengine.mistral_tokenizer import MistralTokenizer

        return MistralTokenizer.from_directory(path)
    if file not in (None, "tokenizer.json"):
        from mmengine.mistral_sentence_piece import MistralSentencePiece

        return MistralSentencePiece.from_directory(path)
    return Tokenizer.from_directory(path)


def tokenizer_file(path: Path) -> str | None:
    """The name of the file that load_tokenizer reads; None for none.

    Raises ModelFormatError for a broken JSON file that tells whose the model is.
    """
    if os.path.lexists(path / "tekken.json"):
        return "tekken.json"
    from mmengine.mistral_sentence_piece import sentence_piece_file

    own = sentence_piece_file(path)
    if own is None and os.path.lexists(path / "tokenizer.json"):
        return "tokenizer.json"
    return own


def load_chat_format(tokenizer: AnyTokenizer | None) -> AnyChatFormat | None:
    """The chat format of a tokenizer; None when it has none that is known."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, Tokenizer):
        from mmengine.chat import chat_format_for

        return chat_format_for(tokenizer)
    from mmengine.mistral_chat import MistralChat

    return MistralChat(tokenizer)
