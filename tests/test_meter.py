"""What a request is charged, against the plain definition: a position counts when it is needed for the first time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignstar.meter import Meter

IDS = st.lists(st.integers(0, 1), max_size=5).map(tuple)
CALLS = st.lists(st.tuples(IDS.filter(len), st.lists(IDS, min_size=1, max_size=3)), max_size=8)


@given(CALLS)
def test_a_position_counts_when_it_is_needed_for_the_first_time(
    calls: list[tuple[tuple[int, ...], list[tuple[int, ...]]]],
) -> None:
    meter, model, known, expected = Meter(), object(), set[tuple[int, ...]](), 0
    for prefix, rows in calls:
        expected += sum(prefix[:n] not in known for n in range(1, len(prefix) + 1))
        for row in rows:  # rows of one call are computed side by side, also where they are alike
            expected += sum(prefix + row[:n] not in known for n in range(1, len(row) + 1))
        for text in [prefix + row for row in rows]:
            known.update(text[:n] for n in range(1, len(text) + 1))
        meter.forward(model, prefix, rows)
        assert meter.usage().lm_tokens == expected
