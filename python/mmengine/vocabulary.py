"""Which tokenizer and chat format a model directory has: Mistral's tekken.json, or tokenizer.json.

tekken.json wins where both are there: Mistral's own tokenizer is the model's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mmengine.chat import ChatFormat
    from mmengine.mistral_chat import MistralChat
    from mmengine.mistral_tokenizer import MistralTokenizer

    AnyTokenizer = Tokenizer | MistralTokenizer
    AnyChatFormat = ChatFormat | MistralChat


def load_tokenizer(path: Path) -> AnyTokenizer | None:
    """The tokenizer of a directory; None when it has neither file.

    A file that is there and cannot be read is an error, whatever is beside it.
    """
    if os.path.lexists(path / "tekken.json"):
        from mmengine.mistral_tokenizer import MistralTokenizer

        return MistralTokenizer.from_directory(path)
    return Tokenizer.from_directory(path)


def load_chat_format(tokenizer: AnyTokenizer | None) -> AnyChatFormat | None:
    """The chat format of a tokenizer; None when it has none that is known."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, Tokenizer):
        from mmengine.chat import chat_format_for

        return chat_format_for(tokenizer)
    from mmengine.mistral_chat import MistralChat

    return MistralChat(tokenizer)
