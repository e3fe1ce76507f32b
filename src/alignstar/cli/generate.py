"""`alignstar generate`: prompts in, responses out, with the user's own models, reward and method. Decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from alignstar.cli.output import interrupt_held, json_lines_file
from alignstar.cli.progress import progress_bar
from alignstar.cli.prompts import Request, as_json, read_prompts
from alignstar.errors import OptionError
from alignstar.evaluate.jsonl import json_line
from alignstar.loading import load
from alignstar.methods.presets import preset as preset_named
from alignstar.options import assignments, complete
from alignstar.types import Response


def _flag(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Sft = Annotated[str | None, _flag("Models", help="The SFT model: a folder or a hub id.")]
Baseline = Annotated[str | None, _flag("Models", help="An already aligned model: a folder or a hub id.")]
RewardLines = Annotated[list[str] | None, _flag("Models", "--reward", help="A reward; several are added up.")]
BaselineReward = Annotated[str | None, _flag("Models", help="The reward that the baseline was aligned to.")]
Value = Annotated[str | None, _flag("Models", help="A value head, as `alignstar train value` writes it: a folder.")]
Device = Annotated[str, _flag("Models", help="cpu, cuda, mps or auto.")]
Dtype = Annotated[str, _flag("Models", help="float32, bfloat16, ... or auto.")]
Trust = Annotated[bool, _flag("Models", "--trust-remote-code", help="Run code that comes with a model.")]
Compile = Annotated[bool, _flag("Models", "--compile", help="torch.compile of Llama-shaped models, once per load.")]
Method = Annotated[str | None, _flag("Decoding", help="See `alignstar methods`.")]
Options = Annotated[
    list[str] | None, _flag("Decoding", "--option", "-o", metavar="NAME=VALUE", help="An option of the method.")
]
PresetName = Annotated[str | None, _flag("Decoding", help="A named set of options, such as official-direct.")]
Seed = Annotated[int, _flag("Decoding", help="Equal seeds give equal responses.", min=0)]
MaxNewTokens = Annotated[int, _flag("Decoding", help="Most tokens in a response.")]
StopTexts = Annotated[list[str] | None, _flag("Decoding", "--stop", help="A text that ends a response.")]
PromptText = Annotated[str | None, _flag("Prompts", help="One prompt.")]
PromptsFile = Annotated[str | None, _flag("Prompts", help="A .jsonl or .txt file; - reads JSON lines from stdin.")]
Chat = Annotated[bool | None, _flag("Prompts", "--chat/--no-chat", help="Apply the chat template, or do not.")]
Truncate = Annotated[Literal["left"] | None, _flag("Prompts", help="Cut a prompt that is too long.")]
AsJson = Annotated[bool, _flag("Output", "--json", help="One JSON object per response.")]
Out = Annotated[str | None, _flag("Output", help="Write the JSON lines to this file too.")]
Trace = Annotated[str | None, _flag("Output", help="Write every step to this file, as JSON lines.")]
Stats = Annotated[bool, _flag("Output", "--stats", help="Say in the end how many candidates needed no reward.")]
Concurrency = Annotated[int, _flag("Output", help="Prompts decoded together.", min=1)]


def generate(
    sft: Sft = None,
    baseline: Baseline = None,
    reward: RewardLines = None,
    baseline_reward: BaselineReward = None,
    value: Value = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    compile: Compile = False,
    method: Method = None,
    option: Options = None,
    preset: PresetName = None,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 128,
    stop: StopTexts = None,
    prompt: PromptText = None,
    prompts: PromptsFile = None,
    chat: Chat = None,
    truncate: Truncate = None,
    json: AsJson = False,
    out: Out = None,
    trace: Trace = None,
    stats: Stats = False,
    concurrency: Concurrency = 16,
) -> None:
    """Decode prompts with your own models, reward and method.

    Prompts come from --prompt, --prompts or standard input, responses go out in the same order as they are finished.
    """
    options = {**assignments(option or []), "seed": seed, "max_new_tokens": max_new_tokens}
    name = _method(method, preset, options)
    requests = read_prompts(prompt=prompt, prompts=prompts)
    with ExitStack() as stack:
        write = stack.enter_context(json_lines_file(out, option="--out"))
        write_trace = stack.enter_context(json_lines_file(trace, option="--trace"))
        aligner = stack.enter_context(
            load(
                sft=sft, baseline=baseline, reward=reward, baseline_reward=baseline_reward, value=value,
                device=device, dtype=dtype, trust_remote_code=trust_remote_code, compile=compile,
            )
        )  # fmt: skip
        bar = stack.enter_context(progress_bar(total=len(requests), doing=name))
        how = {"preset": preset, "stop": stop or (), "chat": chat, "truncate": truncate, **options}
        responses = stack.enter_context(
            closing(aligner.generate_as_completed(requests, method=name, concurrency=concurrency, **how))
        )
        search = Search()
        if stats:
            stack.callback(search.tell)

        def finish(index: int, response: Response) -> None:
            search.add(response)
            row = _row(requests[index], response)
            write(row)
            for step in response.steps:
                write_trace({"prompt_index": index, **asdict(step)})
            if json:
                _print_json(row)
            else:
                _print_text(row, alone=len(requests) == 1)
            bar.advance()

        _in_order(responses, finish)


@dataclass(slots=True)
class Search:
    """What a run's methods did with their candidates."""

    candidates: int = 0
    certified: int = 0
    steps: int = 0
    alone: int = 0

    def add(self, response: Response) -> None:
        """Count a response's."""
        self.candidates += response.usage.candidates
        self.certified += response.usage.certified
        self.steps += len(response.steps)
        self.alone += sum(len(step.considered) == 1 for step in response.steps)

    def tell(self) -> None:
        """Print one line on stderr."""
        line = (
            f"{self.candidates:,} candidates, {self.certified:,} ({self.certified / max(1, self.candidates):.1%}) "
            f"certified away; {self.alone:,} of {self.steps:,} steps without a rollout beside the greedy one"
        )
        Console(stderr=True).print(line, style="dim", highlight=False, soft_wrap=True)


def _method(method: str | None, preset: str | None, options: Mapping[str, Any]) -> str:
    """The method's name; its options are checked before any model is opened."""
    if method is None and preset is None:
        raise OptionError("No method was given: use --method NAME or --preset NAME; `alignstar methods` lists them.")
    named = None if preset is None else preset_named(preset)
    name = method or ("" if named is None else named.method)
    complete(name, options, named)
    return name


def _in_order(responses: Iterable[tuple[int, Response]], finish: Callable[[int, Response], None]) -> None:
    """Call `finish` in the prompts' order as soon as that is possible; when interrupted, for all that are finished."""
    waiting: dict[int, Response] = {}
    following = 0
    try:
        for index, response in responses:
            waiting[index] = response
            with interrupt_held():
                while following in waiting:
                    finish(following, waiting.pop(following))
                    following += 1
    finally:
        with interrupt_held():
            for index in sorted(waiting):
                finish(index, waiting[index])


def _row(request: Request, response: Response) -> dict[str, Any]:
    return {
        "prompt": as_json(request),
        "response": response.text,
        "response_ids": response.ids,
        "method": response.method,
        "finish_reason": response.finish_reason,
        "reward": response.reward,
        "seed": response.seed,
        "usage": asdict(response.usage),
    }


def _print_json(row: Mapping[str, Any]) -> None:
    sys.stdout.write(json_line(row) + "\n")
    sys.stdout.flush()


def _print_text(row: Mapping[str, Any], *, alone: bool) -> None:
    console = Console()
    if not alone:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        console.print(Rule(Text(" ".join(prompt.split())[:100]), align="left"))
    console.print(row["response"], markup=False, highlight=False, soft_wrap=True)
    usage = row["usage"]
    reward = "" if row["reward"] is None else f"reward {row['reward']:.4g}, "
    costs = f"{usage['lm_tokens']:,} LM tokens, {usage['rm_tokens']:,} RM tokens, {usage['wall_s']:.1f} s"
    # On stderr, so that a pipe gets the response alone.
    Console(stderr=True).print(
        f"{row['method']}: {row['finish_reason']}, {reward}{costs}", style="dim", highlight=False
    )
