"""mmengine: an inference engine for Mistral Medium 3.5 and its dense relatives.

>>> import mmengine
>>> with mmengine.Engine("smollm2") as engine:
...     print(engine.generate("The sky is", mmengine.SamplingParams(max_tokens=8)).text)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mmengine.errors import (
    CancelledError,
    EngineDeadError,
    Error,
    ForkError,
    ModelFormatError,
    ModelNotFoundError,
    OutputError,
    OverloadedError,
    RequestError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from mmengine.outputs import (
    ChatReply,
    Completion,
    Delta,
    EngineStats,
    MemoryPlan,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from mmengine.sampling import SamplingParams

if TYPE_CHECKING:
    from mmengine.core import inspect
    from mmengine.engine import Engine
    from mmengine.model_plan import ModelPlan, plan
    from mmengine.pending import PendingRequest

__version__ = "0.1.0"

# Nothing is printed unless the program asks: without a handler, warnings would go to stderr.
logging.getLogger("mmengine").addHandler(logging.NullHandler())

__all__ = [
    "CancelledError",
    "ChatReply",
    "Completion",
    "Delta",
    "Engine",
    "EngineDeadError",
    "EngineStats",
    "Error",
    "ForkError",
    "MemoryPlan",
    "ModelFormatError",
    "ModelNotFoundError",
    "ModelPlan",
    "OutputError",
    "OverloadedError",
    "PendingRequest",
    "RequestError",
    "ResourceError",
    "SamplingParams",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "UnsupportedModelError",
    "Usage",
    "UsageError",
    "__version__",
    "inspect",
    "plan",
]


def __getattr__(name: str) -> Any:
    """The engine is imported when it is first asked for: `mm-run --help` need not wait for it."""
    if name == "Engine":
        from mmengine.engine import Engine

        return Engine
    if name == "inspect":
        from mmengine.core import inspect

        return inspect
    if name == "PendingRequest":
        from mmengine.pending import PendingRequest

        return PendingRequest
    if name in ("ModelPlan", "plan"):
        from mmengine import model_plan

        return getattr(model_plan, name)
    raise AttributeError(f"module 'mmengine' has no attribute {name!r}")
