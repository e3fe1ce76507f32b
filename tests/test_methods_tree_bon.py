"""TreeBoN against best-of-n, blockwise best-of-n and a plain growing of the tree by its rules."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from alignstar.aligner import Aligner
from alignstar.errors import NeedsError
from alignstar.meter import Meter, metering
from alignstar.methods.best_of_n import best_of_n
from alignstar.methods.rows import Row
from alignstar.methods.tree_bon import ImplicitScore, Node, allotted, tree_bon
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.rewards import Scorer
from alignstar.rewards.implicit import ImplicitReward
from alignstar.sampling import Noise, Sampling
from alignstar.text import Stops
from worlds import PROMPT, scorer, steps_of

WEIGHTS = {
    "1/(k+1)": lambda k, n: 1 / (k + 1),
    "1/max(1,k)": lambda k, n: 1 / max(1, k),
    "uniform": lambda k, n: 1.0,
    "1/K": lambda k, n: 1 / n,
}
KINDS = (*WEIGHTS, "rm")


class Watched(ToyModel):
    """Remembers what it was asked to draw: (response so far, rows drawn) per call."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    async def continue_(self, prefix, **options):
        rows = await super().continue_(prefix, **options)
        self.calls.append((prefix[1:], rows))
        return rows

    @property
    def layers(self):
        """{length: [(parent, children)]} in the order in which layers were drawn."""
        calls = sorted(self.calls, key=lambda call: len(call[0]))
        return {
            length: [(parent, [parent + row.ids for row in rows]) for parent, rows in group]
            for length, group in itertools.groupby(calls, key=lambda call: len(call[0]))
        }


def pair(seed, vocab_size=5, **law):
    """An SFT model and another one in the place of the policy aligned from it."""
    return Watched.random(seed, vocab_size, **law), ToyModel.random(seed + 1000, vocab_size, **law)


def implicit(sft, aligned, ids, kind, clip=20.0):
    """The partial reward from the definition, token by token."""
    total = 0.0
    for k, z in enumerate(ids):
        state = PROMPT.ids + ids[:k]
        ratio = float(aligned.law(state)[z] - sft.law(state)[z])
        total += WEIGHTS[kind](k, len(ids)) * min(max(ratio, -clip), clip)
    return total


async def run(**given):
    """(the Step, the Usage)"""
    with metering(Meter()) as meter:
        steps = await steps_of(tree_bon(PROMPT, **given))
    (step,) = steps
    return step, meter.usage()


async def best(n, **given):
    """The Step of best-of-n."""
    (step,) = await steps_of(best_of_n(PROMPT, n=n, **given))
    return step


@pytest.mark.parametrize("shape", [{"layers": 1}, {"children": 1, "layers": 4}, {"children": 1, "layers": 12}])
async def test_without_pruning_it_is_best_of_n(shape):
    """One layer, or one child each: the same draws for the same seed, kept to the end."""
    for seed in range(12):
        sft, aligned = pair(seed, eos_weight=0.5)
        options = {"sft": sft, "reward": scorer(ToyReward(seed=seed), 5), "max_new_tokens": 11, "seed": seed}
        options |= {"temperature": 1.2, "top_k": 4}
        for kind in ("1/(k+1)", "rm"):
            step, _ = await run(baseline=aligned, n=7, partial_reward=kind, **shape, **options)
            expected = await best(7, **options)
            assert step == expected


@pytest.mark.parametrize("kind", KINDS)
async def test_with_all_children_from_one_parent_it_is_blockwise_best_of_n(kind):
    for seed in range(12):
        sft, aligned = pair(seed, eos_weight=0.2)
        reward, response, at = scorer(ToyReward(seed=seed), 5), (), 0
        for layer in range(3):
            purpose = {"purpose": "tree", "step": layer, "candidate": at} if layer else {"purpose": "sample"}
            blocks = await sft.continue_(
                PROMPT.ids + response, max_new_tokens=4, n=6, sampling=Sampling(), noise=Noise(seed=seed, **purpose)
            )
            grown = [response + block.ids for block in blocks]
            if kind == "rm" or layer == 2:
                values = (await reward(PROMPT, grown)).tolist()
            else:
                values = [implicit(sft, aligned, ids, kind) for ids in grown]
            at = int(np.argmax(values))
            response = grown[at]
            if blocks[at].ended:
                break
        else:
            step, _ = await run(
                sft=sft, baseline=aligned, reward=reward, n=6, children=6, layers=3, partial_reward=kind,
                redistribute=False, max_new_tokens=12, seed=seed,
            )  # fmt: skip
            assert [c.ids for c in step.considered] == grown
            assert step.emitted == response


async def test_equal_policies_keep_the_first_nodes():
    sft, _ = pair(0, 6, eos_weight=1e-300)
    step, usage = await run(
        sft=sft, baseline=ToyModel(sft.law, vocab_size=6), reward=scorer(ToyReward(), 6), n=8, children=4, layers=3,
        max_new_tokens=9,
    )  # fmt: skip
    layers = sft.layers
    (_, roots), *_ = layers[0]
    assert [parent for parent, _ in layers[3]] == roots[:2]
    pool = [child for _, family in layers[3] for child in family]
    assert [parent for parent, _ in layers[6]] == pool[:2]
    assert usage.near_ties == step.near_ties == 2, "both cuts"


@pytest.mark.parametrize(
    ("limit", "layers", "segments"), [(12, 4, [3, 3, 3, 3]), (11, 4, [3, 3, 3, 2]), (5, 4, [2, 2, 1])]
)
async def test_tokens_are_those_of_best_of_n_and_segments_fill_the_limit(limit, layers, segments):
    sft, aligned = pair(1, 27, eos_weight=1e-300, temperature=4.0)
    n, parents = 8, 2
    step, usage = await run(
        sft=sft, baseline=aligned, reward=scorer(ToyReward(), 27), n=n, children=4, layers=layers, max_new_tokens=limit
    )
    drawn = {at: [len(c) - at for _, family in families for c in family] for at, families in sft.layers.items()}
    assert drawn == {
        at: [length] * n for at, length in zip(itertools.accumulate([0, *segments]), segments, strict=False)
    }
    assert sum(map(sum, drawn.values())) == n * limit
    # A node's last token is pushed where the node has children. The other policy scores every node but the leaves.
    known = {
        c[:j] for families in list(sft.layers.values())[:-1] for _, f in families for c in f for j in range(len(c))
    }
    assert usage.lm_tokens == (1 + n * limit - n * len(segments) + parents * (len(segments) - 1)) + len(known)
    assert usage.rm_calls == n
    assert usage.rm_tokens == 1 + n * limit
    assert all(len(c.ids) == limit for c in step.considered)


async def by_hand(sft, aligned, r, *, n, children, layers, kind, redistribute, limit, seed):
    """The leaves and the parents of every layer, by the rules and from scratch at every node."""
    segment = math.ceil(limit / layers)
    rows = await sft.continue_(
        PROMPT.ids, max_new_tokens=segment, n=n, sampling=Sampling(), noise=Noise(seed=seed, purpose="sample")
    )
    pool = [(row.ids, Noise(seed=seed, purpose="sample", rollout=i)) for i, row in enumerate(rows)]
    parents, layer = [], 0
    while not all(ids[-1] in sft.eos_ids or len(ids) == limit for ids, _ in pool):
        layer += 1
        value = [r(ids) if kind == "rm" else implicit(sft, aligned, ids, kind) for ids, _ in pool]
        order = sorted(range(len(pool)), key=lambda i: (-value[i], i))
        over = {i for i in order if pool[i][0][-1] in sft.eos_ids}
        chosen = order[: max(1, n // children)]
        quota = dict.fromkeys(chosen, 0)
        for j in range(n):
            quota[chosen[j % len(chosen)]] += 1
        left = sum(quota[i] - 1 for i in chosen if i in over)
        quota |= {i: 1 for i in chosen if i in over}
        while redistribute and left:
            more = [i for i in order if i not in quota and i not in over]
            growing = [i for i in order if i in quota and i not in over]
            if more:
                quota[more[0]] = min(left, children)
                left -= quota[more[0]]
            elif growing:
                for j in range(left):
                    quota[growing[j % len(growing)]] += 1
                left = 0
            else:
                break
        parents.append([pool[i][0] for i in sorted(quota)])
        new = []
        for i in sorted(quota):
            ids, noise = pool[i]
            if i in over:
                new.append((ids, noise))
                continue
            fresh = Noise(seed=seed, purpose="tree", step=layer, candidate=i)
            for j in range(quota[i]):
                own = noise if quota[i] == 1 else replace(fresh, rollout=j)
                (row,) = await sft.continue_(
                    PROMPT.ids + ids, max_new_tokens=min(segment, limit - len(ids)) if ids else segment,
                    sampling=Sampling(), noise=own,
                )  # fmt: skip
                new.append((ids + row.ids, own))
        pool = new
    return [ids for ids, _ in pool], parents


@pytest.mark.parametrize("redistribute", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_tree_is_that_of_the_rules(kind, redistribute):
    sizes = set()
    for seed in range(16):
        sft, aligned = pair(seed, eos_weight=(0.1, 0.6, 2.0)[seed % 3])
        reward = ToyReward(seed=seed)

        def r(ids, reward=reward):
            reply = scorer(reward, 5).reply(ids)
            return reward.value(PROMPT, reply.text, reply.complete)

        shape = {"n": (10, 16, 7)[seed % 3], "children": (4, 4, 2)[seed % 3], "layers": 4, "redistribute": redistribute}
        leaves, parents = await by_hand(sft, aligned, r, kind=kind, limit=14, seed=seed, **shape)
        step, _ = await run(
            sft=sft, baseline=None if kind == "rm" else aligned, reward=scorer(reward, 5), partial_reward=kind,
            max_new_tokens=14, seed=seed, **shape,
        )  # fmt: skip
        assert [c.ids for c in step.considered] == leaves
        assert [c.value for c in step.considered] == [r(ids) for ids in leaves]
        assert [c.logp for c in step.considered] == pytest.approx(
            [float((await sft.logprobs(PROMPT.ids, ids)).sum()) for ids in leaves]
        )
        assert step.emitted == max(leaves, key=r)
        assert len(leaves) <= shape["n"]
        for i, kept in enumerate(parents, start=1):
            assert {ids[: 4 * i] for ids in leaves} <= set(kept), "every leaf descends from a kept node of each layer"
        sizes.add(len(leaves) == shape["n"])
    assert sizes == ({True} if redistribute else {True, False}), "no child is lost where it is given to others"


@pytest.mark.parametrize("kind", WEIGHTS)
async def test_scores_add_up_from_layer_to_layer(kind):
    for seed in range(10):
        sft, aligned = pair(seed, eos_weight=1e-300, zeros=0.2)
        (row,) = await sft.continue_(
            PROMPT.ids, max_new_tokens=13, sampling=Sampling(), noise=Noise(seed=seed, purpose="sample")
        )
        score = ImplicitScore(prompt=PROMPT, aligned=aligned, kind=kind, clip=20.0)
        node = Node(row=Row(noise=Noise(seed=0, purpose="")))
        for length in (1, 4, 5, 11, 13):
            part = replace(node.row, ids=row.ids[:length], logps=row.logps[:length])
            (node,) = await score.scored([replace(node, row=part)])
            assert score.of(node) == pytest.approx(implicit(sft, aligned, row.ids[:length], kind))
        assert node.seen == 13


async def test_uniform_weights_of_a_whole_response_are_the_implicit_reward():
    for seed in range(10):
        sft, aligned = pair(seed)
        (row,) = await sft.continue_(
            PROMPT.ids, max_new_tokens=9, sampling=Sampling(), noise=Noise(seed=seed, purpose="sample")
        )
        score = ImplicitScore(prompt=PROMPT, aligned=aligned, kind="uniform", clip=None)
        (node,) = await score.scored([Node(row=Row(noise=Noise(seed=0, purpose=""), ids=row.ids, logps=row.logps))])
        known = await scorer(ImplicitReward(aligned, sft, beta=0.5), 5)(PROMPT, [row.ids])
        assert 0.5 * score.of(node) == pytest.approx(known[0])


async def test_an_impossible_token_costs_the_clip():
    sft = ToyModel.from_table({"": (0.5, 0.5, 0.0)}, prompt=PROMPT.ids)
    aligned = ToyModel.from_table({"": (1.0, 0.0, 0.0)}, prompt=PROMPT.ids)
    row = Row(noise=Noise(seed=0, purpose=""), ids=(1,), logps=np.log([0.5]))
    for clip, expected in ((20.0, -20.0), (3.0, -3.0), (None, -math.inf)):
        score = ImplicitScore(prompt=PROMPT, aligned=aligned, kind="uniform", clip=clip)
        (node,) = await score.scored([Node(row=row)])
        assert score.of(node) == expected
    assert (await sft.logprobs(PROMPT.ids, (1,)))[0] == row.logps[0]


@pytest.mark.parametrize(
    ("ended", "n", "children", "redistribute", "shares"),
    [
        ("....", 4, 2, True, [2, 2, 0, 0]),
        ("..........", 10, 4, True, [5, 5, 0, 0, 0, 0, 0, 0, 0, 0]),
        (".......", 7, 2, True, [3, 2, 2, 0, 0, 0, 0]),
        ("...", 3, 5, True, [3, 0, 0]),
        ("x...", 4, 2, True, [1, 2, 1, 0]),
        ("x...", 4, 2, False, [1, 2, 0, 0]),
        ("xx.x.", 8, 4, True, [1, 1, 4, 0, 2]),
        ("xx.x", 8, 4, True, [1, 1, 6, 0]),
        ("x.xx", 4, 2, True, [1, 3, 0, 0]),
        ("xxxx", 4, 2, True, [1, 1, 0, 0]),
    ],
)
def test_children_are_dealt_by_rank(ended, n, children, redistribute, shares):
    assert allotted([c == "x" for c in ended], n, children, redistribute=redistribute) == shares


async def test_when_every_node_has_ended_the_reward_chooses_at_once():
    sft, aligned = pair(3, eos_weight=1e9)
    options = {"sft": sft, "reward": scorer(ToyReward(), 5), "max_new_tokens": 12}
    step, usage = await run(baseline=aligned, n=8, **options)
    assert list(sft.layers) == [0]
    assert replace(step, near_ties=0) == replace(await best(8, **options), near_ties=0)
    assert usage.lm_tokens == 1, "the other policy was not asked"


async def test_a_stop_string_ends_a_node():
    sft, aligned = pair(4, eos_weight=1e-300)
    options = {"sft": sft, "baseline": aligned, "max_new_tokens": 24, "layers": 6, "n": 12}
    step, _ = await run(reward=Scorer(ToyReward(), ToyCodec(5), Stops(["AB"])), **options)
    for parent, _ in itertools.chain.from_iterable(sft.layers.values()):
        assert "AB" not in ToyCodec(5).decode(parent)
    assert any("AB" in ToyCodec(5).decode(c.ids) for c in step.considered)


async def test_partial_texts_without_a_reward_lose():
    sft, _ = pair(6, eos_weight=1e-300, temperature=4.0)
    nothing = ToyReward(nan=frozenset(a + b for a in "AB" for b in "ABCD"))
    step, usage = await run(
        sft=sft, reward=scorer(nothing, 5), n=12, children=4, layers=3, partial_reward="rm", max_new_tokens=6
    )
    assert usage.nan_rewards > 0
    assert all(c.ids[0] in (2, 3) for c in step.considered)


async def test_roles():
    sft, aligned = pair(0)
    with pytest.raises(NeedsError, match="method='tree-bon' needs the baseline model; give one with --baseline"):
        await run(sft=sft, reward=scorer(ToyReward(), 5))
    given = {"reward": ToyReward(), "codec": ToyCodec(5, bos=True)}
    with Aligner(sft=sft, **given) as alone:
        with pytest.raises(NeedsError, match="needs the baseline model"):
            alone.generate("AB", method="tree-bon", max_new_tokens=8)
        assert alone.generate("AB", method="tree-bon", partial_reward="rm", max_new_tokens=8).ids
    with Aligner(sft=sft, baseline=aligned, **given) as both:
        response = both.generate("AB", method="tree-bon", max_new_tokens=8, seed=5)
        assert response.steps[0].emitted == response.ids
        assert response.usage.near_ties == response.steps[0].near_ties
        assert response.reward == max(c.value for c in response.steps[0].considered)


async def test_equal_seeds_are_equal_and_siblings_are_not():
    async def one(seed):
        sft, aligned = pair(2, 9, eos_weight=1e-300)
        reward = scorer(ToyReward(), 9)
        return await run(sft=sft, baseline=aligned, reward=reward, n=8, layers=3, max_new_tokens=15, seed=seed)

    assert await one(3) == await one(3)
    leaves = [c.ids for c in (await one(3))[0].considered]
    assert len({ids[5:] for ids in leaves}) == len(leaves), "no two nodes draw the same noise"
    assert len({(await one(seed))[0].emitted for seed in range(6)}) == 6
