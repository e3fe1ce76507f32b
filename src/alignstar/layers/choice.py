"""What to train, in words: `star`, `top_k(2)`, `3..6` become the first and last trained layer and the head's.

Knows numbers of layers; knows no model. Xie et al. 2022, section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from alignstar.errors import OptionError

KNOWN = "full, head, star, star_k(N), star_tuned_head_top(N), top_k(N), FIRST..LAST"

_WORD = re.compile(r"(full|head|star)")
_COUNTED = re.compile(r"(star_k|star_tuned_head_top|top_k)\((\d+)\)")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Layers `bottom` to `top` are trained, the head reads layer `head`, those above it are cut off; counted from 1.

    `bottom` = `top` + 1 trains no layer, the head alone. `everything`: embeddings and the final norm are trained too.
    """

    bottom: int
    top: int
    head: int
    everything: bool = False

    @property
    def trained(self) -> range:
        """The trained layers counted from 0, as lists do."""
        return range(self.bottom - 1, self.top)


def checked(choice: str) -> str:
    """`choice` as it stands. Raises OptionError for one that no model could have."""
    if not any(form.fullmatch(choice) for form in (_WORD, _COUNTED, _RANGE)):
        raise OptionError(f"layers={choice!r} is unknown. Known: {KNOWN}.")
    return choice


def needs_star(choice: str) -> bool:
    """Whether the choice depends on l*, which must be measured."""
    return choice.startswith("star")


def may_cut(choice: str) -> bool:
    """Whether the choice may put the head below the last layer."""
    return not choice.startswith(("full", "head", "top_k", "star_tuned_head_top"))


def band_of(choice: str, *, layers: int, star: int | None = None) -> Band:
    """The layers that `choice` means in a model of `layers` layers whose l* is `star`.

    full: all, embeddings too. head: none, the head alone, on the last layer. top_k(n): the last n. star: 1 to l*, with
    the head there. star_k(n): the n that end at l* (fewer where l* < n). star_tuned_head_top(n): those, with the head
    on the last layer. a..b: these, with the head at b. Raises OptionError for any other choice, and for layers that
    the model has not.
    """
    if match := _RANGE.fullmatch(checked(choice)):
        bottom, top = int(match[1]), int(match[2])
        if not 1 <= bottom <= top <= layers:
            raise OptionError(f"layers={choice!r} must lie within the model's layers, 1..{layers}, lower first.")
        return Band(bottom=bottom, top=top, head=top)
    if choice == "full":
        return Band(bottom=1, top=layers, head=layers, everything=True)
    if choice == "head":
        return Band(bottom=layers + 1, top=layers, head=layers)
    if choice == "star":
        assert star is not None
        return Band(bottom=1, top=star, head=star)
    return _counted(choice, layers, star)


def _counted(choice: str, layers: int, star: int | None) -> Band:
    match = _COUNTED.fullmatch(choice)
    assert match is not None
    name, n = match[1], int(match[2])
    if not 1 <= n <= layers:
        raise OptionError(f"layers={choice!r}: {n} layers of {layers} cannot be trained; give 1 to {layers}.")
    if name == "top_k":
        return Band(bottom=layers - n + 1, top=layers, head=layers)
    assert star is not None
    return Band(bottom=max(1, star - n + 1), top=star, head=star if name == "star_k" else layers)
