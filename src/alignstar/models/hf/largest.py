"""The largest logits of a position and the logarithm of the sum of all, for a CPU, compiled by numba at the first use.

See `kernels`, of which these are kernels too. Importing this needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from alignstar.models.hf.kernels import inlined, kernel

LONG = np.int64


@inlined
def exp_parts_double(x: Any) -> Any:
    """exp(x) of -708 <= x <= 0 as `exp_parts` gives it, in double precision (Cephes, 2e-16)."""
    whole = np.floor(x * 1.4426950408889634 + 0.5)
    x = x - whole * 6.93145751953125e-1 - whole * 1.42860682030941723212e-6
    square = x * x
    above = x * ((1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 1.0)
    below = (3.00198505138664455042e-6 * square + 2.52448340349684104192e-3) * square + 2.27265548208155028766e-1
    below = below * square + 2.0
    return 1.0 + 2.0 * above / (below - above), (LONG(whole) + LONG(1023)) << LONG(52)


@kernel
def best(logits: Any, values: Any, ids: Any, log_z: Any, first: int, last: int) -> None:
    """The largest of `logits` [N, V] in order, ties by the lower id, into `values` and `ids` [N, keep].

    And the logarithm of the sum of all their exponentials, in double precision, into `log_z` [N]; NaN where one is NaN.
    """
    size, keep = logits.shape[1], values.shape[1]
    part, power = np.empty(size), np.empty(size, dtype=LONG)
    scale = power.view(np.float64)
    for n in range(first, last):
        kept = 0
        for j in range(size):
            x = logits[n, j]
            if kept < keep or x > values[n, kept - 1]:
                at = min(kept, keep - 1)
                kept = at + 1
                while at > 0 and values[n, at - 1] < x:
                    values[n, at], ids[n, at] = values[n, at - 1], ids[n, at - 1]
                    at -= 1
                values[n, at], ids[n, at] = x, j
        most = np.float64(values[n, 0])
        if np.isinf(most):
            log_z[n] = most
            continue
        for j in range(size):  # of max(x, y) the first where x is no number: it stays so
            part[j], power[j] = exp_parts_double(max(np.float64(logits[n, j]) - most, -708.0))
        total = 0.0
        for j in range(size):
            total += part[j] * scale[j]
        log_z[n] = most + np.log(total)
