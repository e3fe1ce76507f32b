"""What the two groups of annotators say of replies in the shop's mixture: preferences with a user and a group.

`python -m alignstar.demo.opinions [RATIO] > opinions.jsonl` writes them as JSON lines. Knows no model.
"""

from __future__ import annotations

import json
import random
import sys

from alignstar.demo.customers import message
from alignstar.demo.people import Reply, annotate, staff
from alignstar.demo.replies import reply
from alignstar.demo.rows import SHARPNESS
from alignstar.errors import OptionError


def opinions(ratio: str = "1:1", *, n: int = 6000, people: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """`n` choices of `people` annotators, thorough and brief ones in a ratio such as "3:1".

    Raises OptionError for a ratio that is none.
    """
    thorough, colon, brief = ratio.partition(":")
    if not (colon and thorough.isdecimal() and brief.isdecimal() and int(thorough) + int(brief)):
        raise OptionError(f"ratio={ratio!r} must be two whole numbers such as 3:1, of thorough and brief annotators.")
    share = int(thorough) / (int(thorough) + int(brief))
    rng = random.Random(f"opinions {seed}")
    asked = [message(rng, split="train") for _ in range(n)]
    pairs = [(m.text, Reply(text=reply(rng, m)), Reply(text=reply(rng, m))) for m in asked]
    annotators = staff(n=people, thorough_share=share, sharpness=SHARPNESS, seed=seed)
    return [
        {
            "prompt": p.message,
            "chosen": p.chosen.text,
            "rejected": p.rejected.text,
            "user": p.annotator,
            "group": p.group,
        }
        for p in annotate(pairs, annotators=annotators, seed=seed)
    ]


if __name__ == "__main__":
    for row in opinions(*sys.argv[1:2]):
        sys.stdout.write(json.dumps(row) + "\n")
