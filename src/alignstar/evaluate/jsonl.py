"""Strict JSON in one line: what no JSON number can say is null. Knows nothing of what it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_line(row: Mapping[str, Any]) -> str:
    """`row` as one line of strict JSON; numbers that are not finite become null."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError):  # a number that is not finite, or a mapping that is no dict: few rows have any
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
