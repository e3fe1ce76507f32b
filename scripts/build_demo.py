"""Rebuild the models of the embedded world from a seed, on two CPU cores, and print the figures that describe them.

Stages: sft, pairs, rewards, baseline, figures. Each leaves its result in the work folder, so that `--stage`
can run one again. Knows the world and the training functions. Does not know decoding methods.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignstar.demo.customers import message
from alignstar.demo.people import TASTES, Preference, Reply, annotate, staff
from alignstar.demo.replies import reply
from alignstar.demo.truth import true_reward
from alignstar.train.common import save_half
from alignstar.train.dpo import train_dpo
from alignstar.train.generation import generate_answers
from alignstar.train.reward import Pair, score, train_reward
from alignstar.train.sft import train_sft
from alignstar.train.tokenizer import encode_exchanges, train_tokenizer

STAGES = ("sft", "pairs", "rewards", "baseline", "figures")
SHIPPED = Path(__file__).resolve().parent.parent / "src" / "alignstar" / "demo" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of everything that is trained or drawn."""

    vocab_size: int = 1408
    hidden_size: int = 160
    n_layers: int = 8
    intermediate_size: int = 384
    n_clear: int = 30_000
    n_sft: int = 36_000
    n_pairs: int = 12_000
    n_held_out_pairs: int = 600
    cut_share: float = 0.2
    sharpness: float = 12.0
    n_dpo: int = 4_000
    dpo_beta: float = 2.0
    dpo_learning_rate: float = 1e-3
    dpo_rank: int = 16
    reward_rank: int = 32
    n_samples: int = 1_000
    reward_epochs: float = 2.0
    reward_learning_rate: float = 1.5e-3


QUICK = Plan(
    vocab_size=640,
    hidden_size=64,
    n_layers=2,
    intermediate_size=128,
    n_clear=800,
    n_sft=1_600,
    n_pairs=256,
    n_held_out_pairs=64,
    n_dpo=128,
    n_samples=64,
    reward_epochs=1.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the build writes, its seed and its plan."""

    work: Path
    out: Path
    seed: int
    plan: Plan

    def rng(self, stage: str) -> random.Random:
        """The stage's own stream of randomness."""
        return random.Random(f"{self.seed} {stage}")


def llama(plan: Plan, *, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """An untrained Llama-shaped model with heads of 32 dimensions."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        num_hidden_layers=plan.n_layers,
        num_attention_heads=plan.hidden_size // 32,
        num_key_value_heads=plan.hidden_size // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def conversations(
    rng: random.Random, *, n: int, split: str, manners: tuple[str, ...] | None = None
) -> list[tuple[str, str]]:
    """`n` pairs of a customer's message and a reply, in the shop's mixture of manners or evenly in those given."""
    drawn = []
    for _ in range(n):
        asked = message(rng, split=split)
        drawn.append((asked.text, reply(rng, asked, manner=rng.choice(manners) if manners else None)))
    return drawn


def build_sft(site: Site) -> None:
    """Tokenizer and SFT model: clear replies first, from which it learns to read the message; then the mixture."""
    plan, rng = site.plan, site.rng("sft")
    clear = conversations(rng, n=plan.n_clear, split="train", manners=("careful", "brief"))
    mixed = conversations(rng, n=plan.n_sft, split="train")
    tokenizer = train_tokenizer((f"{a} {b}" for a, b in mixed[:20_000]), vocab_size=plan.vocab_size)
    model = llama(plan, tokenizer=tokenizer, seed=site.seed)
    for examples in (clear, mixed):
        model = train_sft(
            model,
            tokenizer=tokenizer,
            examples=examples,
            output_dir=site.work / "trainer",
            seed=site.seed,
            batch_size=16,
            learning_rate=1.5e-3,
        )
    save_half(model, tokenizer=tokenizer, path=site.out / "sft", notes={"role": "sft"})
    (site.work / "sft_replies.json").write_text(json.dumps([b for _, b in clear + mixed]))


def load_causal(path: Path) -> PreTrainedModel:
    """A saved language model in fp32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def draw_pairs(site: Site, *, split: str, n: int, cut_share: float) -> list[tuple[str, Reply, Reply]]:
    """`n` messages with two SFT samples each, at temperatures 1.0, 0.7 and 1.3; a share of replies is cut short."""
    rng = site.rng(f"pairs {split}")
    tokenizer = AutoTokenizer.from_pretrained(site.out / "sft")
    model = load_causal(site.out / "sft")
    messages = [message(rng, split=split).text for _ in range(n)]
    pairs = []
    for part, (share, temperature) in enumerate(((0.6, 1.0), (0.2, 0.7), (0.2, 1.3))):
        start = len(pairs)
        asked = messages[start : start + round(share * n)]
        both = generate_answers(
            model,
            tokenizer=tokenizer,
            prompts=asked * 2,
            temperature=temperature,
            seed=site.seed * 1000 + part + (500 if split != "train" else 0),
        )
        for i, text in enumerate(asked):
            first, second = (Reply(text=t, complete=done) for t, done in (both[i], both[i + len(asked)]))
            pairs.append((text, cut(rng, first, share=cut_share), cut(rng, second, share=cut_share)))
    rng.shuffle(pairs)
    return pairs


def cut(rng: random.Random, given: Reply, *, share: float) -> Reply:
    """The reply, or with chance `share` a beginning of it that is not complete."""
    words = given.text.split(" ")
    if rng.random() >= share or len(words) < 3:
        return given
    return replace(given, text=" ".join(words[: rng.randrange(1, len(words))]), complete=False)


def build_pairs(site: Site) -> None:
    """Preferences of both groups on the same pairs, for training and held out."""
    for split, n in (("train", site.plan.n_pairs), ("tuning", site.plan.n_held_out_pairs)):
        pairs = draw_pairs(site, split=split, n=n, cut_share=site.plan.cut_share if split == "train" else 0.0)
        for group, share in (("thorough", 1.0), ("brief", 0.0)):
            people = staff(thorough_share=share, sharpness=site.plan.sharpness, seed=site.seed)
            chosen = annotate(pairs, annotators=people, seed=site.seed)
            rows = [asdict(p) for p in chosen]
            (site.work / f"{split}_{group}.json").write_text(json.dumps(rows))


def preferences(site: Site, *, split: str, group: str) -> list[Preference]:
    """The saved preferences of one group on one split."""
    rows = json.loads((site.work / f"{split}_{group}.json").read_text())
    return [
        Preference(**{**row, "chosen": Reply(**row["chosen"]), "rejected": Reply(**row["rejected"])}) for row in rows
    ]


def as_pair(p: Preference) -> Pair:
    """A preference in the form the training functions take."""
    return Pair(
        prompt=p.message,
        chosen=p.chosen.text,
        rejected=p.rejected.text,
        chosen_complete=p.chosen.complete,
        rejected_complete=p.rejected.complete,
    )


def lora(rank: int, *, task: str) -> LoraConfig:
    """Adapters on every linear layer, for a language model (CAUSAL_LM) or for a classifier with its head (SEQ_CLS)."""
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )


def build_rewards(site: Site, only: str | None = None) -> None:
    """One reward model for each group's taste (or `only` one), its held-out accuracy, its scores' scale and range."""
    tokenizer = AutoTokenizer.from_pretrained(site.out / "sft")
    for group, name in TASTES.items():
        if only not in (None, name):
            continue
        model = AutoModelForSequenceClassification.from_pretrained(site.out / "sft", num_labels=1, dtype=torch.float32)
        model = train_reward(
            model,
            tokenizer=tokenizer,
            pairs=[as_pair(p) for p in preferences(site, split="train", group=group)],
            output_dir=site.work / "trainer",
            seed=site.seed,
            epochs=site.plan.reward_epochs,
            batch_size=32,
            lora=lora(site.plan.reward_rank, task="SEQ_CLS"),
            learning_rate=site.plan.reward_learning_rate,
        )
        held_out = preferences(site, split="tuning", group=group)
        good = score(model, tokenizer=tokenizer, exchanges=[(p.message, p.chosen.text, True) for p in held_out])
        bad = score(model, tokenizer=tokenizer, exchanges=[(p.message, p.rejected.text, True) for p in held_out])
        told = [(g > b) for g, b in zip(good, bad, strict=True)]
        clear = [(t, p.margin > 0) for t, p in zip(told, held_out, strict=True) if p.margin != 0]
        values = torch.tensor(good + bad)
        notes = {
            "role": "reward",
            "truth": name,
            "group": group,
            "mean": values.mean().item(),
            "std": values.std().item(),
            "low": values.min().item(),
            "high": values.max().item(),
            "accuracy_true": sum(t == up for t, up in clear) / max(1, len(clear)),
            "accuracy_labels": sum(told) / len(told),
            "n_held_out_pairs": len(held_out),
        }
        print(f"reward_{name}: {json.dumps(notes)}", flush=True)
        save_half(model, tokenizer=tokenizer, path=site.out / f"reward_{name}", notes=notes, base="../sft")


def build_baseline(site: Site) -> None:
    """DPO on the thorough group's preferences through LoRA, merged into a model of the SFT model's shape."""
    plan = site.plan
    tokenizer = AutoTokenizer.from_pretrained(site.out / "sft")
    told = [as_pair(p) for p in preferences(site, split="train", group="thorough")]
    whole = [p for p in told if p.chosen_complete and p.rejected_complete]
    model = train_dpo(
        load_causal(site.out / "sft"),
        tokenizer=tokenizer,
        pairs=whole[: plan.n_dpo],
        output_dir=site.work / "trainer",
        beta=plan.dpo_beta,
        seed=site.seed,
        learning_rate=plan.dpo_learning_rate,
        lora=lora(plan.dpo_rank, task="CAUSAL_LM"),
    )
    notes = {"role": "baseline", "aligned_to": "source", "method": "dpo", "beta": plan.dpo_beta}
    merged = model.merge_and_unload()
    merged.config.alignstar_beta = plan.dpo_beta
    save_half(merged, tokenizer=tokenizer, path=site.out / "baseline", notes=notes)


def figures(site: Site) -> dict[str, object]:
    """What the models are like: variety, copies, certainty, true rewards and sizes."""
    tokenizer = AutoTokenizer.from_pretrained(site.out / "sft")
    rng = site.rng("figures")
    asked = [message(rng, split="tuning").text for _ in range(site.plan.n_samples)]
    trained_on = set(json.loads((site.work / "sft_replies.json").read_text()))
    found: dict[str, object] = {}
    for name in ("sft", "baseline"):
        model = load_causal(site.out / name)
        drawn = generate_answers(model, tokenizer=tokenizer, prompts=asked, seed=site.seed + 77)
        greedy = generate_answers(model, tokenizer=tokenizer, prompts=asked[:200], temperature=0.0)
        texts = [t for t, _ in drawn]
        lengths = sorted(len(ids) for ids in tokenizer(texts)["input_ids"])
        found[name] = {
            "parameters": model.num_parameters(),
            "distinct": len(set(texts)),
            "copied_share": sum(t in trained_on for t in texts) / len(texts),
            "ended_share": sum(done for _, done in drawn) / len(drawn),
            "median_tokens": lengths[len(lengths) // 2],
            "p95_tokens": lengths[len(lengths) * 95 // 100],
            **{f"sampled_{r}": mean_truth(r, asked, drawn) for r in ("source", "target")},
            **{f"greedy_{r}": mean_truth(r, asked[:200], greedy) for r in ("source", "target")},
            **certainty(model, tokenizer, list(zip(asked, texts, strict=True))[:200]),
        }
        if name == "sft":
            for prompt, (text, _) in list(zip(asked, drawn, strict=True))[:50]:
                print(f"> {prompt}\n  {text}")
            for prompt, (text, _) in list(zip(asked[: len(greedy)], greedy, strict=True))[:8]:
                print(f"greedy> {prompt}\n  {text}")
    for name in ("source", "target"):
        found[f"reward_{name}"] = json.loads((site.out / f"reward_{name}" / "alignstar.json").read_text())
    found["megabytes"] = round(sum(f.stat().st_size for f in site.out.rglob("*") if f.is_file()) / 1e6, 2)
    return found


def mean_truth(name: str, asked: list[str], drawn: list[tuple[str, bool]]) -> float:
    """Mean true reward of (reply, ended) to the first messages."""
    values = [
        true_reward(name, message=a, reply=text, complete=done) for a, (text, done) in zip(asked, drawn, strict=True)
    ]
    return round(sum(values) / len(values), 4)


@torch.inference_mode()
def certainty(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, exchanges: list[tuple[str, str]]
) -> dict[str, float]:
    """Share of positions with a top-1 probability above 0.9, and mean entropy (nats), at sentence starts and inside."""
    certain: dict[bool, list[bool]] = {True: [], False: []}
    entropy: dict[bool, list[float]] = {True: [], False: []}
    for head, tail in encode_exchanges(tokenizer, [(a, b, True) for a, b in exchanges]):
        logp = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)[len(head) - 1 : -1]
        marks = [True] + [tokenizer.decode([z])[-1:] in {".", "?", "!"} for z in tail[:-1]]
        for start, row in zip(marks, logp, strict=True):
            certain[start].append(row.max().exp().item() > 0.9)
            entropy[start].append(-(row.exp() * row).sum().item())
    every = certain[True] + certain[False]
    return {
        "top1_above_0.9": round(sum(every) / len(every), 3),
        "top1_above_0.9_at_sentence_start": round(sum(certain[True]) / len(certain[True]), 3),
        "top1_above_0.9_inside": round(sum(certain[False]) / len(certain[False]), 3),
        "entropy_at_sentence_start": round(sum(entropy[True]) / len(entropy[True]), 3),
        "entropy_inside": round(sum(entropy[False]) / len(entropy[False]), 3),
    }


BUILDERS = {
    "sft": build_sft,
    "pairs": build_pairs,
    "rewards": build_rewards,
    "reward_source": partial(build_rewards, only="source"),
    "reward_target": partial(build_rewards, only="target"),
    "baseline": build_baseline,
}


def main() -> None:
    """Run the stages asked for, and write `build.json` beside the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder for the models (default: in the package)")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder for samples and preferences")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under a minute; the models are useless")
    parser.add_argument(
        "--stage", choices=(*BUILDERS, "figures"), action="append", help="run only this stage; may be repeated"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    site = Site(work=args.work, out=args.out, seed=args.seed, plan=QUICK if args.quick else Plan())
    site.work.mkdir(parents=True, exist_ok=True)
    site.out.mkdir(parents=True, exist_ok=True)
    record = site.out / "build.json"
    report = json.loads(record.read_text()) if record.exists() and args.stage else {}
    report |= {"seed": args.seed, "plan": asdict(site.plan)}
    seconds = report.setdefault("seconds", {})
    for stage in args.stage or STAGES:
        began = time.perf_counter()
        if stage == "figures":
            report["figures"] = figures(site)
        else:
            BUILDERS[stage](site)
        seconds[stage] = round(time.perf_counter() - began, 1)
        print(f"{stage}: {seconds[stage]} s", flush=True)
        record.write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(site.work / "trainer", ignore_errors=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
