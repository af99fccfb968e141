"""The tests' own oracle: the float64 decoder of the tiny models, and log-probabilities."""

from __future__ import annotations

from tiny.forward import log_softmax, logits

__all__ = ["log_softmax", "logits"]
