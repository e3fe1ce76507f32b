from __future__ import annotations

import asyncio
from typing import Any

import pytest

from alignstar.errors import OptionError
from alignstar.rewards import Reward
from alignstar.rewards.combine import WeightedSum
from alignstar.rewards.groups import Game, GroupRewards
from alignstar.rewards.spec import RewardSpec, Transformation, build_reward, parse_reward
from alignstar.types import Message, Prompt, Reply

PROMPT = Prompt(messages=(Message(role="user", content="Hi"),), text="Hi", ids=(0,))


class Opened:
    """Stands for a loaded model: remembers how it was asked for."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options
        self.range: tuple[float, float] | None = None

    async def score(self, prompt: Prompt, replies: list[Reply]) -> list[float]:
        return [2.0 for _ in replies]


def build(*lines: str) -> Reward:
    return build_reward(
        [parse_reward(line) for line in lines],
        open_classifier_reward=Opened,
        implicit=lambda beta: Opened("implicit", beta=beta),
    )


def score(text: str, *lines: str) -> float:
    return asyncio.run(build(*lines).score(PROMPT, [Reply(text=text, complete=True)]))[0]


def politeness(prompt: str, response: str, complete: bool) -> float:
    return float(response.count("please"))


def test_a_line_is_read_into_its_parts() -> None:
    line = "0.5*models/reward?output=2&end_of_turn=never|standardise:0.1,2.3|clip:-1,1"
    assert parse_reward(line) == RewardSpec(
        text=line,
        kind="classifier",
        target="models/reward",
        options={"output": 2, "end_of_turn": "never"},
        transformations=(
            Transformation(name="standardise", numbers=(0.1, 2.3)),
            Transformation(name="clip", numbers=(-1.0, 1.0)),
        ),
        weight=0.5,
    )
    assert parse_reward("-2*implicit?beta=0.2|sigmoid") == RewardSpec(
        text="-2*implicit?beta=0.2|sigmoid",
        kind="implicit",
        target="",
        options={"beta": 0.2},
        transformations=(Transformation(name="sigmoid", numbers=()),),
        weight=-2.0,
    )
    assert parse_reward("org/model").target == "org/model"
    assert parse_reward("./implicit").kind == "classifier"


def test_lines_become_rewards() -> None:
    classifier = build("dir?weights=0.5,0.5&template={prompt}%0A{response}{eos}")
    assert isinstance(classifier, Opened)
    assert classifier.options == {"weights": (0.5, 0.5), "template": "{prompt}\n{response}{eos}"}
    implicit = build("implicit")
    assert isinstance(implicit, Opened)
    assert implicit.options == {"beta": 0.1}
    assert score("one two three", "rule:length?max_words=2") == 0.5
    assert score("a+b", "rule:regex?pattern=a\\+b") == 1
    assert score("b", "rule:regex?pattern=a%7Cb&mode=count&max_count=3") == 1
    assert score("Sorry, no", "rule:keywords?present=sorry,right away&absent=no") == pytest.approx(1 / 3)
    assert score("a b c d", "rule:repetition?plus_one=false") == 1
    assert score("please, please", f"python:{__name__}:politeness") == 2


def test_weights_and_transformations() -> None:
    assert score("a", "0.5*dir|clip:-1,1", "3*dir") == 6.5
    assert score("a", "2*dir") == 4
    assert isinstance(build("2*dir"), WeightedSum)
    assert build("dir|clip:-1,1", "rule:length?max_words=5").range == (-1, 2)
    assert score("a", "dir|standardise:1,4|sigmoid:0.25") == pytest.approx(1 / (1 + 2.718281828**-1))
    assert score("a", "2*dir|affine:0.5,-1.25|clip:-1,1") == pytest.approx(2 * (0.5 * 2 - 1.25))
    single = build_reward(parse_reward("dir"), open_classifier_reward=Opened, implicit=Opened)
    assert single.name == "dir"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "names no reward"),
        ("2*", "names no reward"),
        ("rule:size?max_words=2", "Known: length, regex"),
        ("rule:length?words=2", "Known: min_words"),
        ("rule:length?max_words=two", "'two'"),
        ("rule:length?max_words", "needs one value"),
        ("rule:length?max_words=1&max_words=2", "needs one value"),
        ("rule:length", "no bound"),
        ("rule:regex", "needs a pattern"),
        ("rule:repetition?plus_one=1", "true or false"),
        ("dir?beta=1", "Known: output"),
        ("dir?weights=a,b", "cannot be read"),
        ("dir|squash:1", "Known: affine, standardise, clip, sigmoid"),
        ("dir|clip:1", "takes 2 numbers"),
        ("dir|clip:a,b", "cannot be read"),
        ("dir|clip:1,-1", "clip:1.0,-1.0"),
        ("dir|affine:-2,1", "affine:-2.0,1.0 needs a finite slope above 0"),
        ("nan*dir", "Known: output"),
        ("python:nowhere:f", "cannot be imported"),
        ("python:nowhere", "module:function"),
        ("implicit?alpha=1", "Known: beta"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(line: str, part: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(line if line != "nan*dir" else "nan*dir?x=1")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_are_lines_inside_a_line() -> None:
    line = "0.5*min(dir?output=1|standardise:1,2; 2*rule:keywords?present=a%3Bb,(c))|clip:-1,1"
    spec = parse_reward(line)
    assert (spec.kind, spec.target, spec.weight, spec.numbers) == ("groups", "min", 0.5, ())
    assert [(part.kind, part.target, part.weight) for part in spec.parts] == [
        ("classifier", "dir", 1.0),
        ("rule", "keywords", 2.0),
    ]
    assert spec.transformations == (Transformation(name="clip", numbers=(-1.0, 1.0)),)
    assert score("a;b", line) == pytest.approx(0.5 * min((2.0 - 1.0) / 2.0, 2 * 0.5))
    assert score("x", "min(rule:length?max_words=1;rule:keywords?present=a)", "rule:length?max_words=1") == 1.0
    soft = build("soft_min(2, 1, 3; rule:length?max_words=1; rule:keywords?present=a)")
    assert isinstance(soft, GroupRewards)
    assert (soft.kappa, soft.prior, soft.game) == (2.0, (0.25, 0.75), None)
    played = build("game(0.5,8; dir; rule:length?max_words=1)")
    assert isinstance(played, GroupRewards)
    assert played.game == Game(beta=0.5, draws=8)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["soft_min(a; b)"], "'a' in reward='soft_min\\(a; b\\)' cannot be read"),
        (["soft_min(1,2; dir; dir)"], "must read soft_min\\(KAPPA; LINE; ...\\)"),
        (["game(; dir)"], "must read .* game\\(BETA,DRAWS; LINE; ...\\) with a whole number of DRAWS"),
        (["game(1,2.5; dir)"], "with a whole number of DRAWS"),
        (["2*game(1; dir)"], "is a game, which stands alone; weight and transform its groups instead"),
        (["game(1; dir)|sigmoid"], "is a game, which stands alone"),
        (["game(1; dir)", "dir"], "A game stands alone; write what is to be added inside its groups"),
        (["min(dir; min(dir))"], "has groups inside groups; write all groups in one"),
        (["min()"], "names no reward"),
    ],
)
def test_groups_that_make_no_sense_are_refused(lines: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(*lines)
