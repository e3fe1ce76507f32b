"""The main path: results, stop strings, context, roles, streaming, cancellation, threads and loops."""

import asyncio
import threading
from contextlib import aclosing, closing
from dataclasses import replace

import pytest

from alignstar.aligner import Aligner
from alignstar.errors import FailedError, NeedsError, OptionError, PromptError, RewardError
from alignstar.models import Sampler, TokenModel
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.types import Message, Usage

SFT, BASELINE = ToyModel.random(1, 6, eos_weight=0.3), ToyModel.random(2, 6, eos_weight=0.3)
QUICK = {"max_new_tokens": 6, "k": 3, "rollout_len": 2}


def make(**given):
    given = {"sft": SFT, "baseline": BASELINE, "reward": ToyReward(seed=1), **given}
    return Aligner(codec=ToyCodec(6, bos=True), **given)


def same(response):
    """What must be equal whenever two runs of a request are equal."""
    usage = replace(response.usage, wall_s=0.0, lm_calls=0, peak_kv_tokens=0, cached_tokens=0, recomputed_tokens=0)
    return replace(response, usage=usage)


class Held(ToyModel):
    """A model that waits, at its `at`-th call, until it is let go or cancelled."""

    def __init__(self, at=0):
        super().__init__(BASELINE.law, vocab_size=6)
        self.at, self.calls, self.inside, self.cancelled = at, 0, 0, 0
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def _wait(self):
        self.calls += 1
        self.inside += 1
        try:
            if self.calls > self.at:
                self.reached.set()
                await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1

    async def continue_(self, prefix, **options):
        await self._wait()
        return await super().continue_(prefix, **options)

    async def top_next(self, prefix, k=None):
        await self._wait()
        return await super().top_next(prefix, k)


class SlowReward(ToyReward):
    """Sleeps before it scores."""

    async def score(self, prompt, replies):
        await asyncio.sleep(0.001)
        return await super().score(prompt, replies)


class BrokenReward(ToyReward):
    """Raises at the `at`-th call."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    async def score(self, prompt, replies):
        self.at -= 1
        if self.at < 0:
            raise RewardError("The reward broke; mend it.")
        return await super().score(prompt, replies)


@pytest.mark.parametrize("method", ["greedy", "sample", "best-of-n", "args", "transfer-q"])
def test_a_response_holds_together(method):
    options = QUICK if method == "transfer-q" else {"max_new_tokens": 6}
    aligner = make()
    response = aligner.generate("AB", method=method, seed=3, **options)
    assert response.text == aligner.codec.decode(response.ids)
    assert response.reward == ToyReward(seed=1).value(response.prompt, response.text, response.finish_reason == "stop")
    assert sum((step.emitted for step in response.steps), ()) == response.ids
    assert "".join(step.text for step in response.steps) == response.text
    assert response.steps[-1].finish == response.finish_reason
    assert (response.method, response.seed, response.options["max_new_tokens"]) == (method, 3, 6)
    assert "seed" not in response.options
    assert response.usage.near_ties == sum(step.near_ties for step in response.steps)
    assert same(aligner.generate("AB", method=method, seed=3, **options)) == same(response)


def test_the_final_reward_costs_nothing_and_is_none_without_a_reward():
    assert make(reward=None).generate("A", method="greedy").reward is None
    usage = make().generate("A", method="greedy").usage
    assert (usage.rm_calls, usage.rm_tokens) == (0, 0)


async def test_company_and_order_change_nothing():
    aligner = make()
    prompts = ["A", "AB", "BA", "C", "CCC", "A"]
    options = {**QUICK, "rollout_strategy": "sample", "selection": "sample"}
    alone = [await aligner.agenerate(p, seed=i, **options) for i, p in enumerate(prompts)]
    for order in (list(range(6)), [5, 3, 1, 0, 2, 4]):
        together = {}
        many = aligner.agenerate_many([prompts[i] for i in order], seeds=order, concurrency=3, **options)
        async with aclosing(many):
            async for place, response in many:
                together[order[place]] = response
        assert [same(together[i]) for i in range(6)] == [same(r) for r in alone]


def test_many_prompts_keep_their_order():
    aligner = make()
    responses = aligner.generate_many(["A", "B", "C"], **QUICK)
    assert [r.prompt.text for r in responses] == ["A", "B", "C"]
    assert [r.text for r in responses] == [aligner.generate(p, **QUICK).text for p in "ABC"]
    assert aligner.generate_many([]) == []
    assert sorted(i for i, _ in aligner.generate_as_completed(["A", "B"], **QUICK)) == [0, 1]
    with pytest.raises(OptionError, match=r"1 seeds were given for 2 prompts"):
        aligner.generate_many(["A", "B"], seeds=[1])
    with pytest.raises(OptionError, match=r"concurrency=0 must be at least 1"):
        aligner.generate_many(["A", "B"], concurrency=0)


def test_prompts_may_be_conversations_or_made_already():
    aligner = make()
    plain = aligner.generate("AB", method="greedy")
    conversation = [Message(role="user", content="A"), Message(role="user", content="B")]
    assert aligner.generate(conversation, method="greedy").ids == plain.ids
    assert aligner.generate(plain.prompt, method="greedy").ids == plain.ids


def fixed(text, size=6):
    """A model that writes this text after the prompt "A", whatever the rules of its letters."""
    table = {text[:i]: tuple(float(z == "ABCDE".index(c)) for z in range(size)) for i, c in enumerate(text)}
    return ToyModel.from_table(table, prompt=(7, 0))


@pytest.mark.parametrize("method", ["greedy", "best-of-n", "args", "transfer-q"])
def test_stop_strings_across_tokens(method):
    aligner = make(sft=fixed("ABCABDEA"), baseline=fixed("ABCABDEA"))
    response = aligner.generate("A", method=method, stop="BD", max_new_tokens=8)
    assert (response.text, response.finish_reason) == ("ABCA", "stop")
    assert aligner.codec.decode(response.ids) == "ABCABD"
    assert "".join(step.text for step in response.steps) == "ABCA"
    assert sum((step.emitted for step in response.steps), ()) == response.ids
    assert response.reward == ToyReward(seed=1).value(response.prompt, "ABCA", True)


def test_text_is_held_back_while_it_may_become_a_stop_string():
    aligner = make(sft=fixed("ABCABDEA"))
    texts = [step.text for step in aligner.stream("A", method="greedy", stop=["CAD", "EE"], max_new_tokens=8)]
    assert texts == ["A", "B", "", "", "CAB", "D", "", "EA"]


def test_a_prompt_that_does_not_fit():
    short = ToyModel(SFT.law, vocab_size=6, name="short", max_context=12)
    aligner = make(sft=short, baseline=BASELINE)
    message = r"The prompt has 7 tokens and 6 may follow, but short reads 12; shorten it"
    with pytest.raises(PromptError, match=message):
        aligner.generate("ABABAB", method="greedy", max_new_tokens=6)
    assert aligner.generate("ABABA", method="greedy", max_new_tokens=6)
    cut = aligner.generate("CCABABA", method="greedy", max_new_tokens=6, truncate="left")
    assert cut.prompt.text == "CABABA"
    assert cut.ids == aligner.generate(cut.prompt, method="greedy", max_new_tokens=6).ids
    with pytest.raises(PromptError):
        aligner.generate("A", method="greedy", max_new_tokens=12, truncate="left")
    # Only the models that are used count, and rollouts beyond the response do.
    assert aligner.generate("ABABAB", **QUICK)
    used = make(baseline=short)
    assert used.generate("ABABA", **QUICK)
    with pytest.raises(PromptError, match="6 tokens and 8 may follow"):
        used.generate("ABABA", rollout_past_max=True, **QUICK)
    with pytest.raises(OptionError, match="truncate='right' must be 'left'"):
        aligner.generate("A", truncate="right")


def test_an_empty_prompt_is_the_codecs_business():
    assert make().generate("", method="greedy").prompt.ids == (7,)
    with pytest.raises(PromptError):
        Aligner(sft=SFT, codec=ToyCodec(6)).generate("", method="greedy")


class TextOnly:
    """A Sampler that is no TokenModel."""

    name = "text-only"
    eos_ids = SFT.eos_ids
    max_context = None
    tie_tolerance = 0.0
    default_sampling = SFT.default_sampling
    continue_ = SFT.continue_


@pytest.mark.parametrize(
    ("missing", "request_", "message"),
    [
        ("reward", {}, r"method='transfer-q' needs a reward; give one with --reward\."),
        ("baseline", {}, r"method='transfer-q' needs the baseline model; give one with --baseline\."),
        ("baseline", {"candidate_source": "sft", "rollout_model": "sft"}, r"method='transfer-q' needs the baseline"),
        ("sft", {"preset": "cd-minus"}, r"method='transfer-q' needs the sft model; give one with --sft\."),
        ("sft", {"method": "args", "model": "sft"}, r"method='args' needs the sft model"),
        ("baseline_reward", {"preset": "official-indirect"}, r"needs the reward that the baseline was aligned to"),
    ],
)
def test_missing_roles_are_named(missing, request_, message):
    with pytest.raises(NeedsError, match=message):
        make(**{missing: None}).generate("A", **request_)


def test_a_text_only_model_is_refused_by_name_where_tokens_are_needed():
    model = TextOnly()
    assert isinstance(SFT, TokenModel)
    assert not isinstance(model, TokenModel)
    sampler: Sampler = model
    aligner = make(sft=sampler)
    assert aligner.generate("A", method="best-of-n", n=2).text
    assert aligner.generate("A", **QUICK).text  # it is not the one that is used
    with pytest.raises(NeedsError, match=r"method='args' needs next-token log-probabilities, which 'text-only' does"):
        aligner.generate("A", method="args")


def test_presets():
    response = make(baseline_reward=ToyReward(seed=5)).generate("A", preset="official-direct", max_new_tokens=4)
    assert response.options["reward_text"] == "verbatim"
    assert len(response.ids) == 4
    with pytest.raises(OptionError, match=r"preset='cd-minus' belongs to method='transfer-q', not 'args'"):
        make().generate("A", preset="cd-minus", method="args")


class Chatty(ToyCodec):
    """Remembers what `chat` it was asked for."""

    asked = None

    def prompt(self, request, *, chat=None):
        self.asked = chat
        return super().prompt(request, chat=chat)


@pytest.mark.parametrize(
    ("request_", "chat"),
    [({}, None), ({"preset": "official-direct"}, False), ({"preset": "official-direct", "chat": True}, True)],
)
def test_official_presets_take_the_prompt_as_it_is(request_, chat):
    codec = Chatty(6, bos=True)
    aligner = Aligner(baseline=BASELINE, reward=ToyReward(), codec=codec)
    aligner.generate("A", max_new_tokens=1, **request_)
    assert codec.asked is chat


def test_a_stream_gives_the_same_steps_and_then_the_response():
    aligner = make()
    whole = aligner.generate("AB", **QUICK)
    stream = aligner.stream("AB", **QUICK)
    assert stream.response is None
    assert tuple(stream) == whole.steps
    assert same(stream.response) == same(whole)


def test_a_stream_can_be_left():
    with closing(make().stream("AB", method="greedy", max_new_tokens=500)) as stream:
        next(stream)
    assert stream.response is None


async def test_a_slow_reader_holds_up_nobody():
    aligner = make(sft=ToyModel.random(0, 6, eos_weight=1e-300))
    endless = {"method": "greedy", "max_new_tokens": 400}
    slow = aligner.astream("A", **endless)
    async with aclosing(slow):
        await anext(slow)
        fast = [step async for step in aligner.astream("A", **endless)]
        assert len(fast) == 400
        assert [step async for step in slow] == fast[1:]
        assert slow.response.ids == sum((step.emitted for step in fast), ())


async def test_a_reader_that_goes_away_ends_the_request():
    model = Held(at=30)
    stream = make(baseline=model).astream("A", method="greedy", model="baseline", max_new_tokens=500)
    await anext(stream)
    await stream.aclose()
    calls = model.calls
    await asyncio.sleep(0.01)
    assert (model.calls, model.inside) == (calls, 0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("at", range(12))
async def test_cancelling_anywhere_cancels_the_models_calls(at):
    model = Held(at=at)
    request = make(baseline=model).agenerate("A", max_new_tokens=4, k=3, rollout_len=2, acceleration="off")
    task = asyncio.create_task(request)
    await asyncio.wait_for(model.reached.wait(), 20)
    assert model.inside > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.inside == 0
    assert model.cancelled > 0
    assert len(asyncio.all_tasks()) == 1


async def test_an_error_of_the_reward_is_the_requests_error():
    for at in range(3):
        with pytest.raises(RewardError, match="The reward broke"):
            await make(reward=BrokenReward(at)).agenerate("A", **QUICK)
        assert len(asyncio.all_tasks()) == 1
    stream = make(reward=BrokenReward(1)).astream("A", **QUICK)
    with pytest.raises(RewardError, match="The reward broke"):
        [step async for step in stream]
    many = make(reward=BrokenReward(5)).agenerate_many(["A"] * 8, **QUICK)
    with pytest.raises(RewardError, match="The reward broke"):
        [pair async for pair in many]
    assert len(asyncio.all_tasks()) == 1


async def test_a_reward_that_sleeps():
    whole = await make().agenerate("A", **QUICK)
    slow = await make(reward=SlowReward(seed=1)).agenerate("A", **QUICK)
    assert same(slow) == same(whole)


def test_rewards_that_are_no_numbers():
    every = frozenset(a + b + c for a in "ABCDE" for b in ("", *"ABCDE") for c in ("", *"ABCDE")) | {""}
    response = make(reward=ToyReward(nan=every)).generate("A", max_new_tokens=3, k=3, rollout_len=1)
    greedy = make().generate("A", method="greedy", model="baseline", max_new_tokens=3)
    assert response.ids == greedy.ids
    assert response.usage.nan_rewards == response.usage.rm_calls
    assert response.reward == float("-inf")


def test_more_candidates_than_tokens():
    assert make().generate("A", **{**QUICK, "k": 1000}).ids == make().generate("A", **{**QUICK, "k": 6}).ids


def test_calls_from_threads_and_one_after_another():
    aligner = make()
    expected = [aligner.generate(p, **QUICK).ids for p in "ABC"]
    found = {}

    def work(letter):
        found[letter] = aligner.generate(letter, **QUICK).ids

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "ABC"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[letter] for letter in "ABC"] == expected


async def test_a_plain_call_under_a_running_loop():
    aligner = make()
    plain = aligner.generate("A", **QUICK)
    assert same(plain) == same(await aligner.agenerate("A", **QUICK))
    assert len(list(aligner.stream("A", **QUICK))) == len(plain.steps)


def test_a_plain_call_inside_a_request_is_refused():
    aligner = make()

    class Recursive(ToyReward):
        async def score(self, prompt, replies):
            aligner.generate("A", method="greedy")
            return await super().score(prompt, replies)

    with pytest.raises(FailedError, match=r"A plain call inside a running request would wait for ever"):
        make(reward=Recursive()).generate("A", **QUICK)


def test_an_aligner_is_a_context():
    with make() as aligner:
        assert aligner.generate("A", method="greedy").usage != Usage()
    assert aligner.models == {"sft": SFT, "baseline": BASELINE}
