"""Terms: what a request asks besides its answer: whose KV it may share, how long it may take.

Checked here; the core ends a request whose time is over, be it waiting or running.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from mmengine.errors import RequestError
from mmengine.messages import quoted

MAX_SALT_BYTES = 256
MAX_DEADLINE = 1e9  # seconds
_SOON = 1e-9  # seconds; a time limit that is over by the time it reaches the core


@dataclass(frozen=True)
class Terms:
    """cache_salt: KV is shared among equal ones only. ends_at: in seconds of time.monotonic()."""

    cache_salt: str = ""
    ends_at: float | None = None

    @classmethod
    def of(cls, cache_salt: Any, deadline: Any) -> Terms:
        """Of the keywords of a request, from now on. Raises RequestError naming the one at fault.

        cache_salt: None or a text of at most 256 bytes. deadline: None or seconds from now, more
        than 0 and at most 10^9.
        """
        salt = "" if cache_salt is None else cache_salt
        if not isinstance(salt, str):
            raise _refused("cache_salt", cache_salt, "a text", "type")
        try:
            size = len(salt.encode())
        except UnicodeEncodeError:
            raise _refused("cache_salt", salt, "Unicode text without lone surrogates") from None
        if size > MAX_SALT_BYTES:
            limit = f"at most {MAX_SALT_BYTES} bytes"
            raise _refused("cache_salt", f"{size} bytes", limit)
        if deadline is None:
            return cls(salt)
        return cls(salt, time.monotonic() + _seconds(deadline))

    @property
    def is_over(self) -> bool:
        """Whether the time is; from then on always."""
        return self.ends_at is not None and time.monotonic() >= self.ends_at

    def seconds_left(self) -> float:
        """More than 0, and little where the time is over; 0 for no limit."""
        return 0.0 if self.ends_at is None else max(self.ends_at - time.monotonic(), _SOON)


def _seconds(deadline: Any) -> float:
    expected = f"more than 0 and at most {MAX_DEADLINE:.0f} seconds"
    if isinstance(deadline, bool | str | bytes):
        raise _refused("deadline", deadline, expected, "type")
    try:
        seconds = float(deadline)
    except (TypeError, ValueError, OverflowError):
        raise _refused("deadline", deadline, expected, "type") from None
    if not 0 < seconds <= MAX_DEADLINE:  # NaN is not
        raise _refused("deadline", deadline, expected)
    return seconds


def _refused(field: str, value: Any, expected: str, code: str = "out_of_range") -> RequestError:
    return RequestError(
        f"{field}: expected {expected}, got {quoted(value)}", where=field, param=field, code=code
    )
