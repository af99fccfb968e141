"""Text of a growing answer: detokenised as ids arrive, cut at the first stop text.

Characters that may be the beginning of a stop text are held back until it is known, so that what
was handed out is never taken back.
"""

from __future__ import annotations

from mmengine.tokenizer import Detokenizer


class TextStream:
    """One answer. `stopped` turns true when a stop text is complete; nothing follows it."""

    def __init__(
        self, detokenizer: Detokenizer | None, stops: tuple[str, ...], min_tokens: int = 0
    ) -> None:
        """Without a detokenizer all text is empty. Stop texts count after `min_tokens` tokens."""
        self._detokenizer = detokenizer
        self._stops = stops
        self._free = min_tokens
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is certain after this token."""
        if self._detokenizer is None or self.stopped:
            return ""
        text = self._detokenizer.push(token_id)
        if self._free > 0:
            self._free -= 1
            return text
        return self._take(text)

    def finish(self) -> str:
        """What was held back, when the answer ends for another reason."""
        if self._detokenizer is None or self.stopped:
            return ""
        text = self._take(self._detokenizer.flush()) + self._held
        self._held = ""
        return text

    def _take(self, text: str) -> str:
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
