"""Value heads on transformers models: what is stored is what is read, and values are those of a plain forward."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import alignstar
import checkpoints
import tiny
from alignstar.aligner import Aligner
from alignstar.errors import EngineError, ModelError
from alignstar.meter import Meter, metering
from alignstar.models.hf import native
from alignstar.models.hf.branch import Grafted, branch_of, truncated
from alignstar.models.hf.fused import MODEL_TYPES, FusedForward
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.load import Library
from alignstar.models.hf.native import NativeForward
from alignstar.models.hf.network import HeadReadout, Network
from alignstar.models.hf.value import HeadConfig, HFValue, ValueHead, load_head, save_head
from alignstar.models.value import ValueModel

PREFIXES = [tuple(range(40, 60)), tuple(range(40, 52)), (40, 41, 7, 9, 100), (40, 41, 7, 9, 101)]
IDS = np.array([0, 1, 5, 77, 258])


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.language_model(tmp_path_factory.mktemp("models") / "sft", seed=0, num_hidden_layers=3)


def stored(folder: Path, **changes: Any) -> Path:
    return checkpoints.value_head(folder, **{"base": "../sft", "layer": 3, "rank": 4, **changes})


def numbers(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def plainly(sft: Path, folder: Path, prefix: tuple[int, ...], ids: Any) -> np.ndarray:
    """Q(s, z) by a whole forward of transformers, and the formula of the head."""
    model: Any = AutoModelForCausalLM.from_pretrained(sft).eval()
    head = load_head(str(folder)).head
    config = head.config
    model.model.layers = model.model.layers[: config.layer + config.branch]
    if config.branch:  # its layers in the place of the model's, its norm in the place of the last one
        own = load_file(folder / "value.safetensors")
        model.model.norm.weight.data = own["branch.norm.weight"]
        for i, layer in enumerate(model.model.layers[config.layer :]):
            mine = {n.removeprefix(f"branch.layers.{i}."): w for n, w in own.items() if f"branch.layers.{i}." in n}
            layer.load_state_dict(mine)
    with torch.inference_mode():

        def hidden(text: tuple[int, ...]) -> torch.Tensor:
            return model.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]

        if config.rank == 0:
            return np.array([float(head(hidden((*prefix, int(z))))) for z in ids])
        embeddings = model.get_input_embeddings().weight[torch.tensor(ids)]
        return head(hidden(prefix).expand(len(ids), -1), embeddings).numpy()


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("layer", "width", "branch"), [(2, 6, 0), (3, 0, 0), (1, 0, 1), (2, 6, 1), (1, 6, 2)])
async def test_values_are_those_of_a_plain_forward(
    layer: int, width: int, branch: int, rank: int, reuse: bool, sft: Path, tmp_path: Path
) -> None:
    (tmp_path / "sft").symlink_to(sft)
    folder = stored(tmp_path / "value", layer=layer, rank=rank, width=width, branch=branch)
    with alignstar.load(sft=str(sft), value=str(folder), device="cpu", reuse=reuse) as aligner:
        value: ValueModel = aligner.values["value"]
        for _ in range(2):  # computed, then remembered
            for prefix in PREFIXES:
                expected = plainly(sft, folder, prefix, IDS)
                np.testing.assert_allclose(await value.next_values(prefix, IDS), expected, atol=1e-4)
            whole = [plainly(sft, folder, prefix[:-1], [prefix[-1]])[0] for prefix in PREFIXES]
            np.testing.assert_allclose(await value.prefix_values(PREFIXES), whole, atol=1e-4)
        assert float(np.ptp(expected)) > 1e-2


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for rank, width in ((0, 0), (5, 0), (3, 7)):
        head = ValueHead(HeadConfig(base="b", layer=2, state_size=8, rank=rank, width=width, mean=0.3, scale=2.0))
        save_head(head, tmp_path / "head", notes={"loss": "fudge"})
        found = load_head(str(tmp_path / "head"))
        assert found.head.config == head.config
        assert found.base == "b"
        states, tokens = torch.randn(6, 8), torch.randn(6, 8)
        torch.testing.assert_close(found.head(states, tokens), head(states, tokens), rtol=0, atol=0)
    assert json.loads((tmp_path / "head" / "value.json").read_text())["notes"] == {"loss": "fudge"}


@pytest.mark.parametrize("branch", [0, 1])
async def test_on_the_model_that_decodes_only_what_is_its_own_costs(branch: int, sft: Path, tmp_path: Path) -> None:
    """One forward tells log-probabilities and values, and tokens are those without a head; where values are read, every
    position costs the share of head and branch more."""
    (tmp_path / "sft").symlink_to(sft)
    folder = stored(tmp_path / "value", branch=branch, layer=2 if branch else 3)
    model: Any = AutoModelForCausalLM.from_pretrained(sft)
    own = load_head(str(folder))
    share = (numbers(own.head.parameters()) + numbers(own.weights.values())) / numbers(model.parameters())
    with (
        alignstar.load(sft=str(sft), value=str(folder), device="cpu") as valued,
        alignstar.load(sft=str(sft), device="cpu") as bare,
    ):
        plain = await bare.agenerate("Where?", method="sample", max_new_tokens=8)
        drawn = await valued.agenerate("Where?", method="sample", max_new_tokens=8)
        assert (drawn.ids, drawn.usage.lm_tokens) == (plain.ids, plain.usage.lm_tokens)
        weightless = await valued.agenerate("Where?", method="controlled-decoding", weight=0.0, k=259, max_new_tokens=8)
        assert weightless.ids == plain.ids
        assert weightless.usage.lm_tokens == plain.usage.lm_tokens + int(np.ceil(share * plain.usage.lm_tokens))
        assert weightless.usage.sequential_steps == plain.usage.sequential_steps
        model = valued.models["sft"]
        assert isinstance(model, HFModel)
        forwards = model.worker.forwards
        with metering(Meter()) as meter:
            await model.top_next(PREFIXES[0], 5)
            await valued.values["value"].next_values(PREFIXES[0], IDS)
        assert model.worker.forwards == forwards + 1
        assert meter.usage().lm_tokens == len(PREFIXES[0]) + int(np.ceil(share * len(PREFIXES[0])))
        assert meter.usage().sequential_steps == 1
        other = bare.models["sft"]
        assert isinstance(other, HFModel)
        with pytest.raises(EngineError, match="was loaded without a value head on it"):
            await other.features(PREFIXES[0])


@pytest.mark.parametrize("branch", [0, 1])
async def test_a_trunk_of_its_own_counts_by_its_parameters(branch: int, sft: Path, tmp_path: Path) -> None:
    """Two of three layers, and what goes on behind them: what is read is charged as that share of a position, once."""
    checkpoints.language_model(tmp_path / "other", seed=1, num_hidden_layers=3)
    folder = stored(tmp_path / "value", layer=2, branch=branch, base="../other")
    model: Any = AutoModelForCausalLM.from_pretrained(sft)
    size = sum(p.numel() for p in model.parameters())
    above = sum(p.numel() for p in model.model.layers[2].parameters()) + model.lm_head.weight.numel()
    own = load_head(str(folder))
    share = (size - above + numbers(own.head.parameters()) + numbers(own.weights.values())) / size
    with alignstar.load(sft=str(sft), value=str(folder), device="cpu") as aligner:
        with metering(Meter()) as meter:
            await aligner.values["value"].next_values(PREFIXES[0], IDS)
            assert meter.usage().lm_tokens == int(np.ceil(share * len(PREFIXES[0])))
            await aligner.values["value"].next_values(PREFIXES[1], IDS)  # a beginning of it
            assert meter.usage().lm_tokens == int(np.ceil(share * len(PREFIXES[0])))
            assert meter.usage().sequential_steps == 1
            await aligner.values["value"].prefix_values(PREFIXES)
            read = len(PREFIXES[0]) + len(PREFIXES[2]) - 3
            assert meter.usage().lm_tokens == int(np.ceil(share * read))
        response = await aligner.agenerate("Where?", method="controlled-decoding", max_new_tokens=6)
        length = len(response.prompt.ids) + len(response.ids) - 1
        assert response.usage.lm_tokens == length + int(np.ceil(share * length))


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_models_of_any_family_are_cut_or_refused(family: str) -> None:
    model = tiny.causal_lm(family)
    if family == "opt":  # its list of layers lies deeper
        with pytest.raises(
            ModelError, match=r"^layer=2 of 'tiny' cannot be read; it has layers 1 to 4, use layer=4\.$"
        ):
            truncated(model, 2, name="tiny")
        return
    cut = truncated(model, 2, name="tiny")
    tokens = torch.tensor([range(3, 20)])
    with torch.inference_mode():
        states = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        got = cut(input_ids=tokens, use_cache=False).last_hidden_state
        whole = truncated(model, 4, name="tiny")(input_ids=tokens, use_cache=False).last_hidden_state
        again = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        norms = [m for n, m in model.base_model.named_children() if "norm" in n or n in ("ln_f", "final_layernorm")]
        torch.testing.assert_close(got, norms[-1](states[2]))
    torch.testing.assert_close(whole, states[4])
    assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))


async def test_a_model_that_bends_its_logits_gets_a_trunk(tmp_path: Path) -> None:
    """Read along with the logits only where those are a product of the same states."""
    model = tiny.causal_lm("gemma2", dtype=torch.float32)
    model.save_pretrained(tmp_path / "sft")
    checkpoints.tokenizer().save_pretrained(tmp_path / "sft")
    head = checkpoints.value_head(tmp_path / "value", base="../sft", layer=4, rank=2, state_size=32)
    library = Library(device="cpu")
    library.expect(load_head(str(head)))
    (decoding, _) = library.pair(str(tmp_path / "sft"), None)
    assert decoding is not None
    value = library.value(load_head(str(head)))
    assert isinstance(value, HFValue)
    assert np.isfinite(await value.next_values((3, 4, 5), np.array([3, 4]))).all()
    with pytest.raises(EngineError, match="without a value head"):
        await decoding.features((3, 4, 5))
    library.engine.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "value.json").unlink(),
            r"holds no value\.json; give a folder that `alignstar train value` wrote",
        ),
        (lambda f: (f / "value.safetensors").unlink(), r"holds no value\.safetensors"),
        (lambda f: (f / "value.json").write_text("{"), "cannot be read as a value head"),
        (lambda f: (f / "value.json").write_text("[]"), "cannot be read as a value head"),
        (lambda f: (f / "value.json").write_text('{"base": "x"}'), "cannot be read as a value head"),
        (lambda f: (f / "value.safetensors").write_bytes(b"x"), "cannot be read as a value head"),
        (lambda f: stored(f, state_size=8), "was trained on states of 8 numbers, '.*sft' has 16; train it again"),
        (lambda f: stored(f, layer=7), r"layer=7 of '.*sft' cannot be read; it has layers 1 to 3, use layer=3\."),
        (lambda f: stored(f, base="/nowhere/at/all"), "value='/nowhere/at/all' does not exist"),
        (
            lambda f: stored(f, layer=2, branch=1, of={"intermediate_size": 32}),
            "has a branch whose weights do not fit '.*sft'; train it again",
        ),
        (
            lambda f: stored(f, layer=3, branch=1, of={"num_hidden_layers": 4}),
            r"branch=1 behind layer=3 of '.*sft' cannot be made: it copies the layers 4 to 4, of which there are 3",
        ),
    ],
)
def test_refusals_are_one_sentence(spoil: Any, message: str, sft: Path, tmp_path: Path) -> None:
    (tmp_path / "sft").symlink_to(sft)
    folder = stored(tmp_path / "value")
    spoil(folder)
    with pytest.raises(ModelError, match=message) as error:
        alignstar.load(sft=str(sft), value=str(folder), device="cpu")
    assert "\n" not in str(error.value)


def test_a_head_of_other_tokens_is_refused(sft: Path, tmp_path: Path) -> None:
    other = checkpoints.language_model(tmp_path / "other", seed=1, with_tokenizer=checkpoints.tokenizer(shuffled=True))
    folder = checkpoints.value_head(tmp_path / "value", base=str(other), layer=2, rank=4)
    with pytest.raises(ModelError, match="have different tokenizers"):
        alignstar.load(sft=str(sft), value=str(folder), device="cpu")


def test_a_head_on_another_model_is_loaded_beside(sft: Path, tmp_path: Path) -> None:
    checkpoints.language_model(tmp_path / "other", seed=1)
    folder = checkpoints.value_head(tmp_path / "value", base="../other", layer=2, rank=4)
    with alignstar.load(sft=str(sft), value=str(folder), device="cpu") as aligner:
        assert isinstance(aligner, Aligner)
        response = aligner.generate("It leaks", method="controlled-decoding", mode="blockwise", blocks=3, block_len=2,
                                    max_new_tokens=5)  # fmt: skip
        assert response.ids
        assert all(c.value is not None for c in response.steps[0].considered)


@pytest.mark.parametrize("family", sorted(set(tiny.CONFIGS) - {"opt"}))
def test_a_branch_of_copies_says_what_the_model_says(family: str) -> None:
    """On models of any family: the backbone's states stay as they are, whole or cut off below the branch, and a branch
    that was not trained ends where the layers end that it copies."""
    model = tiny.causal_lm(family)
    tokens = torch.tensor([range(3, 20)])
    branch = branch_of(model, 2, 1, name="tiny")
    norm: Any = branch.norm
    with torch.inference_mode():
        layers = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        reached = norm(layers[3])
        for backbone in (model.base_model, truncated(model, 2, name="tiny")):
            alone = backbone(input_ids=tokens, use_cache=False).last_hidden_state
            both = Grafted(backbone, branch_of(model, 2, 1, name="tiny"))(input_ids=tokens).last_hidden_state
            torch.testing.assert_close(both, torch.cat((alone, reached), dim=-1))
        again = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(layers, again, strict=True))


@pytest.mark.parametrize("family", sorted(name for name, reuse in tiny.REUSE.items() if reuse and name != "opt"))
@pytest.mark.parametrize("kernels", [True, False])
def test_keys_and_values_of_a_branch_are_reused_too(
    family: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that share, step and roll back are those of whole sequences, the branch's states among them."""
    if kernels:  # whatever lies behind the positions must not be told
        monkeypatch.setattr(native, "_room", lambda count, size: np.full((count + 3, size), np.nan, dtype=np.float32))
    else:
        monkeypatch.setattr("alignstar.models.hf.network.native_forward", lambda fused: None)
    model = tiny.causal_lm(family, dtype=torch.float32)  # some norms are in float32 whatever the model is in
    branch = branch_of(model, 1, 2, name="tiny")
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    grafted = Grafted(model.base_model, branch)
    head = torch.nn.Identity()
    network = Network("tiny", grafted, HeadReadout(head), config=grafted.config, device=torch.device("cpu"))
    assert network.reuse
    kind = NativeForward if kernels else FusedForward
    assert isinstance(network._paged, kind) == (family in MODEL_TYPES)  # pyright: ignore[reportPrivateUsage]


def test_what_a_branch_cannot_copy_is_refused(tmp_path: Path) -> None:
    """An adapter's own layers; what an adapter of another model has put on shared weights is left out."""
    with pytest.raises(
        ModelError, match=r"^branch=2 behind layer=3 of 'tiny' cannot be made: .* 4 to 5, of which there"
    ):
        branch_of(tiny.causal_lm("llama"), 3, 2, name="tiny")
    with pytest.raises(ModelError, match="which are no plain list; use branch=0"):
        branch_of(tiny.causal_lm("opt"), 2, 1, name="tiny")
    adapted: Any = get_peft_model(tiny.causal_lm("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    bare, plain = (
        branch_of(adapted.base_model.model, 2, 1, name="tiny"),
        branch_of(tiny.causal_lm("llama"), 2, 1, name="t"),
    )
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), plain.parameters(), strict=True))
    adapted.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"branch=1 copies layers, and those of '.*' are under an adapter; merge it first"
    ):
        branch_of(adapted.base_model.model, 2, 1, name=str(tmp_path))
