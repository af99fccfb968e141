"""How many members an object has, and their names, as a grammar can hold them.

llguidance counts members and lets a free name come twice; it counts none beside properties that
may be left out.
"""

from __future__ import annotations

from typing import Any

_MAX_ALTERNATIVES = 32


def settle_counts(schema: dict[str, Any]) -> tuple[str, str] | None:
    """Counts of members in other words; the keyword and what is wrong where that cannot be.

    What `required` and `properties` say already is left out. At least one of properties that may
    all be left out is an anyOf of those.
    """
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    optional = [name for name in properties if name not in required]
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    least, most = schema.get("minProperties", 0), schema.get("maxProperties")
    if least <= len(required):
        schema.pop("minProperties", None)
    elif least > 1:
        return (
            "minProperties",
            f"{least} with {len(required)} required, expected 1 or at most as many as required",
        )
    elif optional:
        if "anyOf" in schema or len(optional) > _MAX_ALTERNATIVES:
            return "minProperties", "cannot be enforced here, expected required"
        del schema["minProperties"]
        schema["anyOf"] = [{"required": [name]} for name in optional]
    if most is not None and closed and most >= len(properties):
        del schema["maxProperties"]
    elif most is not None and optional:
        return "maxProperties", "beside properties that are not required, expected none"
    return None
