"""The options of the methods: type, bounds and meaning of each, in one place. No behaviour.

A method's signature names these types; `alignstar.options` reads bounds and meanings from them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt, doc

Role: TypeAlias = Literal["sft", "baseline"]

MaxNewTokens: TypeAlias = Annotated[int, Ge(1), doc("most tokens in the response, end-of-sequence included")]
Seed: TypeAlias = Annotated[int, doc("equal seeds give equal responses")]
Model: TypeAlias = Annotated[Role | None, doc("which model decodes; none: sft where there is one, else baseline")]

Temperature: TypeAlias = Annotated[float, Gt(0), doc("log-probabilities are divided by it before drawing")]
TopK: TypeAlias = Annotated[Annotated[int, Ge(1)] | None, doc("draw from the so many most probable tokens; none: all")]
TopP: TypeAlias = Annotated[float, Gt(0), Le(1), doc("draw from the smallest set of tokens with this probability")]
Draws: TypeAlias = Annotated[int, Ge(1), doc("responses drawn")]
DrawSelection: TypeAlias = Annotated[
    Literal["best", "soft", "regularised", "weighted", "majority"],
    doc(
        "highest reward; a draw by exp(reward/beta); reward + beta logp; answer with most exp(reward/beta); most given"
    ),
]
SelectionStrength: TypeAlias = Annotated[
    float, Gt(0), doc("of soft, regularised and weighted: small trusts the reward")
]
AnswerKey: TypeAlias = Annotated[
    str, doc("what weighted and majority compare: text, or python:MODULE:FUNCTION called with it")
]

K: TypeAlias = Annotated[int, Ge(1), doc("candidate tokens per step; at most the vocabulary")]
Alpha: TypeAlias = Annotated[float, Gt(0), doc("a candidate's value is divided by it: small is strong")]
Weight: TypeAlias = Annotated[float, Ge(0), doc("a candidate's value is multiplied by it")]
OtherWeight: TypeAlias = Annotated[Annotated[float, Ge(0)] | None, doc("1/alpha, given instead of alpha")]
ArgsStrategy: TypeAlias = Annotated[Literal["greedy", "stochastic"], doc("best score, or a draw from softmax(score/T)")]

CandidateSource: TypeAlias = Annotated[Literal["baseline", "sft", "union"], doc("which model proposes candidates")]
CandidateRule: TypeAlias = Annotated[
    Literal["topk", "sample_without_replacement", "topp", "full"],
    doc("k most probable; k drawn; of the k those within candidate_top_p; the whole vocabulary"),
]
CandidateTopP: TypeAlias = Annotated[float, Gt(0), Le(1), doc("probability to cover under candidate_rule=topp")]
BasePolicy: TypeAlias = Annotated[
    Literal["auto", "baseline", "sft", "pi_r"],
    doc("whose log-probability is added; auto: baseline for direct and unnormalised, else pi_r"),
]

NumRollouts: TypeAlias = Annotated[int, Ge(1), doc("rollouts per candidate")]
RolloutLen: TypeAlias = Annotated[
    Annotated[int, Ge(0)] | Literal["auto"] | None,
    doc("most tokens per rollout; auto: 20 direct, 5 indirect; none: to the end of the response"),
]
GroupRolloutLen: TypeAlias = Annotated[
    Annotated[int, Ge(0)] | None, doc("most tokens per rollout; none: to the end of the response")
]
Aggregate: TypeAlias = Annotated[
    Literal["game", "value_min"],
    doc("groups weighted in every state against the policy; the smallest of the groups' values"),
]
RolloutStrategy: TypeAlias = Annotated[
    Literal["greedy", "sample", "checkpoint"], doc("checkpoint: as its generation config says")
]
RolloutModel: TypeAlias = Annotated[Role, doc("which model continues the candidates")]
RolloutPastMax: TypeAlias = Annotated[bool, doc("rollouts keep their length beyond max_new_tokens")]

Selection: TypeAlias = Annotated[Literal["greedy", "sample"], doc("best score, or a draw from softmax(score/T)")]
StopOnEos: TypeAlias = Annotated[bool, doc("false: end-of-sequence is a token like any other")]
RewardNorm: TypeAlias = Annotated[
    str, doc("none, standardise(mean,std), sigmoid, clip(low,high) or candidate_zscore, before anything else")
]
RewardText: TypeAlias = Annotated[
    Literal["reply", "verbatim"], doc("verbatim: prompt, fill and special tokens as they stand, no template")
]

Transfer: TypeAlias = Annotated[
    Literal["auto", "direct", "indirect"], doc("auto: indirect where the baseline's reward is given or implicit")
]
IndirectMode: TypeAlias = Annotated[
    Literal["snis", "unnormalised", "global"], doc("how rollouts are reweighted to the target reward")
]
Beta: TypeAlias = Annotated[float, Gt(0), doc("the KL strength that the baseline was trained with")]
LogWeightClip: TypeAlias = Annotated[Annotated[float, Gt(0)] | None, doc("log-weights are clipped to +-this [nats]")]
EssFloor: TypeAlias = Annotated[float, Ge(0), Le(1), doc("flatten weights until ESS/n reaches this")]
ImplicitBaselineReward: TypeAlias = Annotated[bool, doc("the baseline's reward is beta log(baseline/sft)")]
NormaliserRollouts: TypeAlias = Annotated[int, Ge(1), doc("rollouts from the prompt under indirect_mode=global")]

Block: TypeAlias = Annotated[
    int,
    Ge(1),
    doc("approximate above 1: tokens per decision, from the winner's rollout; for equal tokens a smaller k loses less"),
]
Halving: TypeAlias = Annotated[
    int,
    Ge(1),
    doc("approximate above 1: rounds, rollouts twice as long for the better half; no better than a smaller k"),
]
Gate: TypeAlias = Annotated[
    float,
    Ge(0),
    Le(1),
    doc("approximate below 1: a candidate of more probability is emitted unsearched; waits less than a smaller k"),
]
AdaptiveRollouts: TypeAlias = Annotated[
    float,
    Ge(0),
    Le(1),
    doc("approximate above 0: fewer rollouts, with this chance per token to choose otherwise; waits 4 times as long"),
]

Acceleration: TypeAlias = Annotated[
    Literal["auto", "off"], doc("auto: what is proven to give the same tokens, where it applies; off: every candidate")
]
Skip: TypeAlias = Annotated[bool, doc("skip candidates that a reward of known range cannot make win")]
Window: TypeAlias = Annotated[int, Ge(1), doc("positions decided together while the most probable token wins")]
Wave: TypeAlias = Annotated[
    Annotated[int, Ge(1)] | None,
    doc("candidates evaluated before the others are reconsidered; none: six where that spares the others, else all"),
]

ReturnBestRollout: TypeAlias = Annotated[bool, doc("return the best complete response seen in any rollout")]
WinnerProtection: TypeAlias = Annotated[bool, doc("leave the last winner's rollout only for one at least as good")]

RealignWeight: TypeAlias = Annotated[
    float, doc("lambda: 0 is the sft model, 1 the baseline, between them a blend, beyond them extrapolation")
]
ArmBeta: TypeAlias = Annotated[float, Gt(0), doc("the baseline's log-probability is divided by it: small is strong")]
ProductSelection: TypeAlias = Annotated[
    Literal["sample", "greedy"], doc("draw as the next three options say, or take the most probable token")
]

Beams: TypeAlias = Annotated[int, Ge(1), doc("responses in the making that are kept per step")]
Lookahead: TypeAlias = Annotated[
    Annotated[int, Ge(0)] | None, doc("most tokens looked ahead, greedily; none: to the end of the response")
]

KVBudget: TypeAlias = Annotated[
    Annotated[int, Ge(1)] | Literal["auto"],
    doc("KV positions that all rows may fill, prompt included; auto: as many as the backend has room for"),
]
RejectionRate: TypeAlias = Annotated[float, Ge(0), Lt(1), doc("share of the rows that is dropped at a decision")]
Headroom: TypeAlias = Annotated[int, Ge(1), doc("tokens that the budget has room for in each of the first rows")]
MaxRows: TypeAlias = Annotated[int, Ge(1), doc("rows to begin with at most, however large the budget")]
PromptKV: TypeAlias = Annotated[
    Literal["shared", "per_row"], doc("whether the prompt fills the budget once, or once for each row")
]
Quantile: TypeAlias = Annotated[
    Literal["rank", "interp"], doc("keep a fixed share, or all that reach the interpolated quantile")
]
FinishedInQuantile: TypeAlias = Annotated[bool, doc("responses that have ended still count when rows are ranked")]

Children: TypeAlias = Annotated[int, Ge(1), doc("continuations of each kept node")]
Layers: TypeAlias = Annotated[int, Ge(1), doc("segments that a response is grown in")]
PartialReward: TypeAlias = Annotated[
    Literal["1/(k+1)", "1/max(1,k)", "uniform", "1/K", "rm"],
    doc("weight of token k's log-ratio baseline/sft (uniform: 1; 1/K: the mean); rm: the reward of the partial text"),
]
LogRatioClip: TypeAlias = Annotated[Annotated[float, Gt(0)] | None, doc("log-ratios are clipped to +-this [nats]")]
Redistribute: TypeAlias = Annotated[bool, doc("children that a finished node does not need go to other nodes")]

ControlMode: TypeAlias = Annotated[
    Literal["tokenwise", "blockwise"], doc("weigh every next token by its value; or keep the best of several blocks")
]
Blocks: TypeAlias = Annotated[int, Ge(1), doc("blockwise: blocks drawn, of which one is kept")]
BlockLen: TypeAlias = Annotated[int, Ge(1), doc("blockwise: most tokens in a block")]
Values: TypeAlias = Annotated[
    Literal["rollouts", "head"], doc("what tells a candidate's value; head: the value model, without any rollout")
]
ValueTop: TypeAlias = Annotated[
    Annotated[int, Ge(1)] | None, doc("approximate: roll out the so many candidates that the value model likes best")
]
