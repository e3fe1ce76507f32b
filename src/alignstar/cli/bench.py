"""`alignstar bench`: the comparisons behind the figures. Prints tables, writes JSON; `alignstar.bench` measures."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from alignstar.cli import bench_tables
from alignstar.cli.bench_compile import compiled
from alignstar.cli.bench_frontier import frontier
from alignstar.cli.bench_layers import layers
from alignstar.cli.bench_maxmin import maxmin
from alignstar.cli.bench_savings import savings
from alignstar.cli.bench_stores import stores
from alignstar.cli.output import check_writable
from alignstar.errors import FailedError, OptionError
from alignstar.evaluate.jsonl import json_line
from alignstar.options import assignments

if TYPE_CHECKING:
    from alignstar.bench.setups import Setup

bench = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The comparisons behind the figures: the same decoding done in several ways, cost and identity.",
)

bench.command()(savings)
bench.command()(stores)
bench.command("compile")(compiled)
bench.command()(frontier)
bench.command()(maxmin)
bench.command()(layers)

WORKS = ("demo", "30m")
T = TypeVar("T", int, float)

WorkNames = Annotated[str, typer.Option("--work", help="demo, 30m (random weights of that size), or both: demo,30m.")]
Prompts = Annotated[str, typer.Option(help="Prompts decoded together; several numbers: 1,16.")]
PromptTokens = Annotated[str, typer.Option(help="Length of the random prompts of 30m; several: 64,512.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens emitted per prompt; end-of-sequence is ignored.")]
Repeats = Annotated[int, typer.Option(min=1, help="Alternating repeats; medians are printed.")]
Clip = Annotated[str, typer.Option(help="Bounds of the standardised reward, e.g. 1,2,4,none.")]
Alphas = Annotated[str, typer.Option("--alpha", help="Strengths, e.g. 1 or 0.1,1,10.")]
K = Annotated[int, typer.Option("--k", min=1, help="Candidates per step.")]
RolloutLen = Annotated[int, typer.Option(min=1, help="Tokens per rollout.")]
Flat = Annotated[bool, typer.Option("--flat", help="30m with more than 4 nats of next-token entropy.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Out = Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")]


@bench.command()
def tq(
    work: WorkNames = "demo",
    prompts: Prompts = "1",
    prompt_tokens: PromptTokens = "64",
    clip: Clip = "1,2,4,none",
    alpha: Alphas = "1",
    tokens: Tokens = 96,
    naive_tokens: Annotated[
        int | None, typer.Option(min=1, help="The naive loop decodes only so many; its cost per token grows later.")
    ] = None,
    repeats: Repeats = 3,
    k: K = 10,
    rollout_len: RolloutLen = 20,
    flat: Flat = False,
    each_saving: Annotated[
        bool, typer.Option("--each-saving/--ours-only", help="Also every saving on top of those before it.")
    ] = True,
    threads: Threads = None,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Transfer Q* against the published loop and plain decoding: time, tokens, equal ids.

    Exit status 1: ids differ where no near tie excuses it.
    """
    settings = dict(locals())
    bounds, strengths = _bounds(clip), _numbers(alpha, "alpha", float)
    with _setups(settings) as (setups, progress):
        from alignstar.bench.tq import Work, run

        done: list[Any] = []
        for setup in setups:
            for bound, strength in itertools.product(bounds, strengths):
                asked = Work(
                    tokens=tokens, naive_tokens=naive_tokens, repeats=repeats, k=k, rollout_len=rollout_len,
                    alpha=strength, each_saving=each_saving,
                )  # fmt: skip
                done.append(run(replace(setup, clip=bound), asked, on_way=progress.update))
                _console().print(bench_tables.transfer_q(done[-1]))
                _save("tq", settings, done)  # after every table: a long run that is interrupted keeps what it has
    _check(done)


@bench.command()
def greedy(
    work: WorkNames = "demo",
    prompts: Prompts = "1,16",
    prompt_tokens: PromptTokens = "64",
    tokens: Tokens = 96,
    repeats: Repeats = 5,
    threads: Threads = None,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """Our greedy decoding against transformers' own `generate`, on the same model.

    Exit status 1: ids differ where no near tie excuses it.
    """
    settings = dict(locals())
    with _setups(settings) as (setups, progress):
        from alignstar.bench.greedy import run

        done = [run(setup, tokens=tokens, repeats=repeats, on_way=progress.update) for setup in setups]
    _console().print(bench_tables.greedy(done))
    _save("greedy", settings, done)
    _check(done)


@bench.command()
def memory(
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the one random prompt.")] = 1000,
    clip: Clip = "1,none",
    alpha: Annotated[float, typer.Option(help="Strength.")] = 1.0,
    tokens: Tokens = 96,
    repeats: Repeats = 1,
    k: K = 10,
    rollout_len: RolloutLen = 20,
    bound: Annotated[str, typer.Option(help="Room, in multiples of prompt + response + k rollouts.")] = "1.3",
    threads: Threads = None,
    device: Device = "cpu",
    out: Out = None,
) -> None:
    """KV positions that Transfer Q* holds for a long prompt, on 30m: with room for all, and with little room."""
    settings = dict(locals())
    bounds, factors = _bounds(clip), _numbers(bound, "bound", float)
    with _setups({**settings, "work": "30m", "prompts": "1", "prompt_tokens": str(prompt_tokens)}) as (
        setups,
        progress,
    ):
        from alignstar.bench.memory import run
        from alignstar.bench.tq import Work

        asked = Work(tokens=tokens, k=k, rollout_len=rollout_len, alpha=alpha)
        done = [
            run(replace(setup, clip=bound), asked, factors=factors, repeats=repeats, on_way=progress.update)
            for setup in setups
            for bound in bounds
        ]
    for outcome in done:
        _console().print(bench_tables.memory(outcome))
    _save("memory", settings, done)
    _check(done)


@bench.command()
def plan(
    model: Annotated[str | None, typer.Argument(help="A model's folder; its config.json is read.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="The reward model's folder (none: the same shape).")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Instead of the folder's.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Width of a layer.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key-value heads (none: as many).")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, help="Channels of a head (none: hidden / heads).")] = None,
    intermediate: Annotated[int | None, typer.Option(min=1, help="Feed-forward width (none: 4 hidden).")] = None,
    vocab: Annotated[int | None, typer.Option(min=1, help="Tokens of the vocabulary.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float64, float32, bfloat16 or float16.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the run.")] = 1,
    together: Annotated[int, typer.Option(min=1, help="Prompts decoded together, at most.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of a prompt.")] = 64,
    method: Annotated[str, typer.Option(help="See `alignstar methods`.")] = "transfer-q",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response.")] = 128,
    tokens_per_s: Annotated[
        float | None, typer.Option(help="Speed of the language model (none: by this CPU's matrix products).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    out: Out = None,
) -> None:
    """Price a run before it starts, from shapes alone: tokens, sequential steps, KV memory, estimated seconds.

    Loads no weights. A response that ends by itself costs less.
    """
    from alignstar.bench.plan import costs, measured_speed, price
    from alignstar.bench.record import record, write
    from alignstar.bench.shapes import shape_of

    settings = dict(locals())
    if tokens_per_s is not None and not 0 < tokens_per_s < float("inf"):
        raise OptionError(f"tokens_per_s={tokens_per_s} must be a finite number above 0; leave it out to measure one.")
    if out is not None:
        check_writable(out, option="--out")
    numbers = {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "intermediate": intermediate, "vocab": vocab, "dtype": dtype,
    }  # fmt: skip
    shape = shape_of(model, numbers)
    reward = shape if reward_model is None else shape_of(reward_model, {"dtype": dtype})
    ways = costs(method, assignments(option or []), prompt=prompt_tokens, response=max_new_tokens, vocab=shape.vocab)
    given = tokens_per_s
    speed = measured_speed(shape, context=prompt_tokens + max_new_tokens) if given is None else lambda _width: given
    prices = [price(way, prompts=prompts, together=together, shape=shape, reward=reward, speed=speed) for way in ways]
    recorded = record("plan", settings=_plain(settings), runs=[p.as_json() for p in prices])
    if as_json:
        typer.echo(json_line(recorded))
    else:
        title = f"{method}, {prompts} prompt(s) of {prompt_tokens} tokens, {max_new_tokens} new tokens each"
        _console().print(bench_tables.plan(prices, title=title, shape=shape, measured=given is None))
    if out is not None:
        write(out, recorded)


@contextmanager
def _setups(settings: Mapping[str, Any]) -> Generator[tuple[Generator[Setup, None, None], Any]]:
    """The setups of every combination that was asked for, opened one by one, and a status line."""
    names = settings["work"].split(",")
    for name in names:
        if name not in WORKS:
            raise OptionError(f"work={name!r} is unknown; known: {', '.join(WORKS)}.")
    flat = settings.get("flat", False)
    if flat and "demo" in names:
        raise OptionError("flat=True changes the random models only; leave it out, or give --work 30m.")
    counts = _numbers(settings["prompts"], "prompts", int)
    lengths = _numbers(settings["prompt_tokens"], "prompt_tokens", int)
    if settings["out"] is not None:
        check_writable(settings["out"], option="--out")

    import torch

    from alignstar.bench.setups import demo_setup, random_setup
    from alignstar.models.hf.load import pick_device

    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    device = str(pick_device(settings["device"]))

    def opened(scratch: Path) -> Generator[Setup, None, None]:
        for name, count in itertools.product(names, counts):
            if name == "demo":
                yield demo_setup(count, device=device)
                continue
            for length in lengths:
                yield random_setup(count, prompt_tokens=length, scratch=scratch, flat=flat, device=device)

    with tempfile.TemporaryDirectory() as scratch, Console(stderr=True).status("opening the models") as progress:
        yield opened(Path(scratch)), progress


def _save(name: str, settings: Mapping[str, Any], done: Sequence[Any]) -> None:
    """Write the record where one was asked for."""
    if settings["out"] is None:
        return
    import torch

    from alignstar.bench.record import record, write

    on_gpu = torch.cuda.is_available() and not settings["device"].startswith("cpu")
    recorded = record(
        name,
        settings=_plain(settings),
        runs=[outcome.as_json() for outcome in done],
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if on_gpu else None,
    )
    write(settings["out"], recorded)


def _check(done: Sequence[Any]) -> None:
    """Raise FailedError where a way gave wrong ids."""
    wrong = sorted({way for outcome in done for way in outcome.wrong})
    if wrong:
        raise FailedError(f"Other ids than the reference's, and no near tie excuses it: {', '.join(wrong)}.")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command, of all its local names."""
    return {name: v for name, v in settings.items() if v is None or isinstance(v, str | int | float | bool | list)}


def _console() -> Console:
    """The terminal, or where there is none a width at which no table wraps."""
    return Console() if Console().is_terminal else Console(width=132)


def _numbers(text: str, name: str, kind: type[T]) -> list[T]:
    """Numbers above 0 from "1,16"."""
    numbers: list[T] = []
    for word in text.split(","):
        try:
            number = kind(word)
        except ValueError:
            number = kind(0)
        if not 0 < number < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise OptionError(f"{name}={word!r} must be {what} above 0; several are separated by commas.")
        numbers.append(number)
    return numbers


def _bounds(text: str) -> list[float | None]:
    """Bounds from "1,2,none"; none is no range."""
    return [None if word == "none" else _numbers(word, "clip", float)[0] for word in text.split(",")]
