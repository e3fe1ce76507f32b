"""What there is to say about a mixture: accuracy, agreement with the truth, its JSON, its curves. Pure numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from alignstar.evaluate.statistics import Interval, share_interval
from alignstar.report.curves import curves
from alignstar.sampling import Array
from alignstar.train.mixture import Mask, Votes
from alignstar.train.search import Found


def accuracy(differences: Array, votes: Votes, reward: Array, members: Mask) -> Interval:
    """Share of the held-out votes of users with `members` [H] that a reward tells right; ties count half."""
    margins = (differences @ reward)[votes.held_out & members[votes.user]]
    return share_interval(float(np.sum(0.5 * (1.0 + np.sign(margins)))), len(margins))


def agreement(groups: Sequence[int], truth: Sequence[str]) -> float:
    """Share of users whose group is the true one, each group having one true name at most, and the best of all."""
    names = sorted(set(truth))
    count = max(groups) + 1
    together = np.zeros((len(names), count), dtype=np.int64)
    np.add.at(together, ([names.index(name) for name in truth], list(groups)), 1)
    best = np.full(1 << count, -1)  # the most users told right by the names so far, by the groups that have a name
    best[0] = 0
    for row in together:
        after = best.copy()
        for taken in range(1 << count):
            for group in range(count):
                if best[taken] >= 0 and not taken >> group & 1:
                    after[taken | 1 << group] = max(after[taken | 1 << group], best[taken] + row[group])
        best = after
    return float(np.max(best)) / len(groups)


def described(found: Found, users: Sequence[str]) -> dict[str, Any]:
    """The search and the kept mixture, for a file."""
    state = found.state
    soft = bool(np.any((state.memberships > 0.0) & (state.memberships < 1.0)))
    return {
        "groups": len(state.rewards),
        "weights": state.shares.tolist(),
        "assignments": dict(zip(users, state.groups.tolist(), strict=True)),
        **({"memberships": dict(zip(users, state.memberships.tolist(), strict=True))} if soft else {}),
        "held_out_votes": found.kept.held_out.votes,
        "kept": asdict(found.kept.trial),
        "path": [
            {"l2": l2, "likelihoods": list(stage.likelihoods), "objectives": list(stage.objectives)}
            for l2, stage in found.kept.path
        ],
        "tried": [
            {
                **asdict(row.trial),
                "likelihood": row.state.likelihoods[-1],
                "objective": row.state.objectives[-1],
                "held_out_likelihood_per_vote": row.held_out.mean,
            }
            for row in found.rows
        ],
    }


def likelihood_plot(found: Found, *, n_votes: int) -> str:
    """The log-likelihood per vote over the iterations of each number of groups' best row, as an SVG."""
    series: Mapping[str, Sequence[tuple[float, float]]] = {
        f"{groups} group{'s' if groups > 1 else ''}": [
            (float(i), value / n_votes) for i, value in enumerate(row.likelihoods, start=1)
        ]
        for groups, row in sorted(found.best.items())
    }
    return curves(
        series,
        title="likelihood of the votes",
        x_title="iteration, from the strongest penalty down",
        y_title="nats per vote",
    )
