"""From paths and ids to models on the engine: checkpoints, adapters, devices, dtypes, memory budgets.

Knows transformers' loading functions; every refusal is one sentence. Nothing but safetensors is read and no code that
comes with a checkpoint is run unless the user asked for it by name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignstar.engine import Engine
from alignstar.errors import ModelError, OptionError
from alignstar.models.hf.adapters import SharedBase, Switch, base_of, is_adapter
from alignstar.models.hf.branch import truncated
from alignstar.models.hf.classifier import HFClassifier
from alignstar.models.hf.codec import HFCodec, check_same_tokens, load_tokenizer, special_id
from alignstar.models.hf.compiled import check_compiler
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.network import (
    HeadReadout,
    LogitsReadout,
    Network,
    PooledReadout,
    context_limit,
)
from alignstar.models.hf.sparsity import Sparsity, last_layer
from alignstar.models.hf.value import (
    HFValue,
    StoredHead,
    TappedReadout,
    ValueHead,
    read_off,
    read_trunk,
)
from alignstar.sampling import GREEDY, Sampling

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

MERGE_BELOW = 1 << 28
"""Bytes of a base below which every adapter gets a merged copy: there, switching costs more than memory does."""


def pick_device(device: str) -> torch.device:
    """The device to use; "auto": cuda, then mps, then cpu. Raises OptionError for one that this machine has not."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device={device!r} cannot be used here; known: auto, cpu, cuda, cuda:N, mps.") from error
    return chosen


class Library:
    """Everything loaded for one aligner. A checkpoint named twice, or under several adapters, is in memory once.

    Adapters on a base of fewer than `merge_below` bytes are merged into copies of it instead.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        kv_tokens: int | None = None,
        reuse: bool = True,
        merge_below: int = MERGE_BELOW,
        compile: bool = False,
    ) -> None:
        if dtype != "auto" and dtype not in DTYPES:
            raise OptionError(f"dtype={dtype!r} is unknown; known: auto, {', '.join(DTYPES)}.")
        if kv_tokens is not None and kv_tokens < 1:
            raise OptionError(f"kv_tokens={kv_tokens} must be at least 1: it is how many positions' KV may be held.")
        self.device = pick_device(device)
        if compile:
            check_compiler(self.device)
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code
        self.kv_tokens = kv_tokens
        self.reuse = reuse
        self.merge_below = merge_below
        self.compile = compile
        self.engine = Engine()
        self._bases: dict[str, SharedBase] = {}
        self._models: dict[str, HFModel] = {}
        self._classifiers: dict[tuple[str, Sparsity | None], tuple[HFClassifier, PreTrainedTokenizerBase]] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._opened: dict[str, tuple[torch.nn.Module, Switch]] = {}
        self._expected: StoredHead | None = None
        self._tapped: set[str] = set()

    def torch_dtype(self) -> torch.dtype | str:
        """What to load weights as: float32 on CPU and the checkpoint's own type elsewhere, unless asked."""
        if self.dtype == "auto":
            return torch.float32 if self.device.type == "cpu" else "auto"
        return DTYPES[self.dtype]

    def tokenizer(self, path: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a checkpoint."""
        if path not in self._tokenizers:
            self._tokenizers[path] = load_tokenizer(path, trust_remote_code=self.trust_remote_code)
        return self._tokenizers[path]

    def language(self, path: str, *, role: str, vocab_size: int | None = None) -> HFModel:
        """A causal language model, or a LoRA adapter on one. `vocab_size` cuts its distribution to that many tokens."""
        key = _key(path)
        if key not in self._models:
            self._models[key] = self._model(path, *self._open(path, role), vocab_size)
        return self._models[key]

    def _open(self, path: str, role: str) -> tuple[torch.nn.Module, Switch]:
        key = _key(path)
        if key not in self._opened:
            self._opened[key] = self._adapted(path, role) if is_adapter(path) else self._bare(path, role)
        return self._opened[key]

    def expect(self, head: StoredHead) -> None:
        """Say before models are opened which head will be read, so that the model below it can have it read along."""
        self._expected = head

    def value(self, stored: StoredHead) -> HFValue:
        """A value head: on the forward of a model that is open, if it was expected there, else on a trunk of its own.

        Raises ModelError where its model cannot be opened or has other tokens than the models that are open.
        """
        check_checkpoint(stored.base, "value", adapter=is_adapter(stored.base))
        key, head = _key(stored.base), stored.head
        for path in [*self._models]:
            check_same_tokens(self.tokenizer(stored.base), self.tokenizer(path))
        opened, switch = self._open(stored.base, "value")
        model = cast("Any", opened)
        embeddings = model.get_input_embeddings().weight.detach()
        if embeddings.shape[1] != head.config.state_size:
            raise ModelError(
                f"value={stored.folder!r} was trained on states of {head.config.state_size} numbers, {stored.base!r} "
                f"has {embeddings.shape[1]}; train it again."
            )
        limit = context_limit(model.config.get_text_config())
        own = _size(head) + sum(weight.numel() for weight in stored.weights.values())
        if key in self._tapped:
            return HFValue(stored.folder, head, embeddings, read_off(self._models[key], own / _size(model)), limit)
        trunk: Any = truncated(model, head.config.layer, name=stored.base)
        share = (_size(trunk) + own) / _size(model)
        trunk = stored.grafted(model, trunk) or trunk
        head.to(device=self.device, dtype=embeddings.dtype)
        network = Network(
            stored.folder, trunk, HeadReadout(head.state, head.config.state_size), config=trunk.config,
            device=self.device, adapter=switch, reuse=self.reuse, compile=self.compile,
        )  # fmt: skip
        return HFValue(
            stored.folder, head, embeddings, read_trunk(self._heads(network, max(1, head.config.rank)), share), limit
        )

    def pair(self, sft: str | None, baseline: str | None) -> tuple[HFModel | None, HFModel | None]:
        """The SFT and the baseline model, over the vocabulary that both have; ModelError if there is none."""
        common = None
        if sft is not None and baseline is not None and _key(sft) != _key(baseline):
            ours, theirs = self.tokenizer(sft), self.tokenizer(baseline)
            if len(ours) != len(theirs):
                common = check_same_tokens(ours, theirs)
            else:
                check_same_tokens(ours, theirs)
        models = [
            None if path is None else self.language(path, role=role, vocab_size=common)
            for path, role in ((sft, "sft"), (baseline, "baseline"))
        ]
        return models[0], models[1]

    def codec(self, path: str) -> HFCodec:
        """The codec of a loaded language model."""
        return HFCodec(self.tokenizer(path), eos_ids=self._models[_key(path)].eos_ids, name=path)

    def classifier(self, path: str, sparsity: Sparsity | None = None) -> tuple[HFClassifier, PreTrainedTokenizerBase]:
        """A sequence classifier and its tokenizer; an adapter whose base is loaded, and not small, shares it."""
        key = _key(path), sparsity
        if key not in self._classifiers:
            base = self._bases.get(_key(base_of(path))) if is_adapter(path) else None
            if base is None or base.bytes < self.merge_below:
                self._classifiers[key] = self._own_classifier(path, sparsity)
            else:
                self._classifiers[key] = self._head_on(path, base, sparsity)
        return self._classifiers[key]

    def _own_classifier(self, path: str, sparsity: Sparsity | None) -> tuple[HFClassifier, PreTrainedTokenizerBase]:
        from alignstar.models.hf.checkpoint import open_classifier

        check_checkpoint(path, "reward", adapter=is_adapter(path))
        opened, tokenizer = open_classifier(path, self.torch_dtype(), trust_remote_code=self.trust_remote_code)
        model = cast("Any", opened).to(self.device)
        if sparsity is not None:
            sparsity.apply(last_layer(model, name=path, outputs=model.config.num_labels))
        # A head called `score` reads one position of a causal backbone; anything else pools in its own way.
        head = dict(model.named_children()).get("score")
        network = Network(
            _named(path, sparsity),
            model if head is None else model.base_model,
            PooledReadout() if head is None else HeadReadout(head),
            config=model.config.get_text_config(),
            device=self.device,
            causal=head is not None,
            reuse=self.reuse,
            compile=self.compile,
        )
        return self._heads(network, model.config.num_labels), tokenizer

    def _head_on(
        self, path: str, base: SharedBase, sparsity: Sparsity | None
    ) -> tuple[HFClassifier, PreTrainedTokenizerBase]:
        switch, rest = base.add(path)
        model = cast("Any", base.model)
        head = _head(path, rest).to(device=model.device, dtype=model.dtype)
        if sparsity is not None:
            sparsity.apply(head)
        network = Network(
            _named(path, sparsity),
            model.base_model,
            HeadReadout(head),
            config=model.config.get_text_config(),
            device=self.device,
            adapter=switch,
            reuse=self.reuse,
            compile=self.compile,
        )
        return self._heads(network, head.out_features), self.tokenizer(path)

    def _heads(self, network: Network, labels: int) -> HFClassifier:
        return HFClassifier(
            network,
            self.engine,
            labels=labels,
            max_context=context_limit(network.config),
            kv_tokens=self._room(network),
        )

    def _bare(self, path: str, role: str) -> tuple[torch.nn.Module, Switch]:
        base = self._base(path, role=role)
        return base.model, base.bare

    def _adapted(self, path: str, role: str) -> tuple[torch.nn.Module, Switch]:
        base = self._base(base_of(path), role=role)
        if base.bytes >= self.merge_below:
            return base.model, base.add(path)[0]
        own = SharedBase(self._causal(base_of(path), role))
        own.add(path)
        own.merge()
        return own.model, own.bare

    def _base(self, path: str, *, role: str) -> SharedBase:
        key = _key(path)
        if key not in self._bases:
            self._bases[key] = SharedBase(self._causal(path, role))
        return self._bases[key]

    def _causal(self, path: str, role: str) -> torch.nn.Module:
        check_checkpoint(path, role)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=self.torch_dtype(),
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{role}={path!r} cannot be loaded as a causal language model: {_first(error)}") from error
        model, info = loaded
        if info["missing_keys"]:
            raise ModelError(
                f"{role}={path!r} is no causal language model: no weights for {sorted(info['missing_keys'])[0]!r}."
            )
        return model.to(self.device).eval()

    def _model(self, path: str, model: torch.nn.Module, switch: Switch, vocab_size: int | None) -> HFModel:
        model_ = cast("Any", model)
        config = model_.config.get_text_config()
        size = min(int(config.vocab_size), vocab_size or int(config.vocab_size))
        settings: dict[str, Any] = {
            "config": config, "device": self.device, "adapter": switch, "reuse": self.reuse, "compile": self.compile
        }  # fmt: skip
        tapped = self._read_along(path, model_, size)
        if tapped is None:
            network = Network(path, model, LogitsReadout(model, size), **settings)
        else:
            head, backbone = tapped
            network = Network(
                path, backbone, TappedReadout(model_, size, head), **{**settings, "config": backbone.config}
            )
            self._tapped.add(_key(path))
        eos = _ids(model_.config.eos_token_id) | _ids(model_.generation_config.eos_token_id)
        own = special_id(self.tokenizer(path), "eos")
        return HFModel(
            network,
            self.engine,
            vocab_size=size,
            eos_ids=frozenset(eos | _ids(own)),
            max_context=context_limit(config),
            kv_tokens=self._room(network),
            default_sampling=_sampling(model_.generation_config),
        )

    def _read_along(self, path: str, model: Any, size: int) -> tuple[ValueHead, Any] | None:
        """The expected head and the backbone that it is read off, if it reads this model's last layer or has a branch.

        None too where the logits are not a product of the model's last states.
        """
        stored = self._expected
        if stored is None or _key(stored.base) != _key(path):
            return None
        head, last = stored.head, model.base_model.config.num_hidden_layers
        if head.config.state_size != model.get_output_embeddings().in_features:
            return None
        if not head.config.branch and head.config.layer != last:
            return None
        backbone = stored.grafted(model, model.base_model) or model.base_model
        head.to(device=self.device, dtype=next(model.parameters()).dtype)
        tokens = torch.arange(min(size, 8), device=self.device)[None]
        with torch.inference_mode():
            read = TappedReadout(model, size, head)
            told = read(lambda: backbone(input_ids=tokens, use_cache=False), tokens.shape[1])
            logits = model(input_ids=tokens, use_cache=False).logits
            same = torch.allclose(told[..., :size], logits[..., :size], rtol=1e-5, atol=1e-6)
        return (head, backbone) if same else None  # some models bend their logits behind the product

    def _room(self, network: Network) -> int:
        """KV positions a model may hold: as asked, or what fits a 16th of memory (a quarter of a GPU's free)."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        if self.device.type == "cuda":
            budget = torch.cuda.mem_get_info(self.device)[0] // 4
        else:
            budget = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16
        return max(1024, min(budget // max(1, network.bytes_per_position), 1 << 20))


def check_checkpoint(path: str, role: str, *, adapter: bool = False) -> None:
    """Refuse, before anything is loaded, a path that does not exist and a checkpoint without safetensors."""
    folder = Path(path).expanduser()
    if not folder.exists():
        looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
        if looks_local:
            raise ModelError(f"{role}={path!r} does not exist; give a model directory or a hub id.")
        return
    if not folder.is_dir():
        raise ModelError(f"{role}={path!r} is a file; give the directory that holds the checkpoint.")
    if not adapter and not (folder / "config.json").is_file():
        raise ModelError(f"{role}={path!r} holds no config.json; give a directory saved with save_pretrained.")
    if not any(folder.glob("*.safetensors")):
        kind = "only pickled weights" if any(folder.glob("*.bin")) else "no weights"
        raise ModelError(
            f"{role}={path!r} holds {kind}, and only safetensors are read; convert it with "
            "AutoModel....from_pretrained(path).save_pretrained(path, safe_serialization=True) where you trust it."
        )


def _key(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _named(path: str, sparsity: Sparsity | None) -> str:
    return path if sparsity is None else f"{path}?{sparsity}"


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _ids(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return set(value) if isinstance(value, list) else {value}


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sampling(generation: Any) -> Sampling:
    """The checkpoint's own way of decoding, as its generation_config says: greedy unless it samples."""
    if not generation.do_sample:
        return GREEDY
    return Sampling(
        temperature=1.0 if generation.temperature is None else float(generation.temperature),
        top_k=generation.top_k or None,
        top_p=1.0 if generation.top_p is None else float(generation.top_p),
    )


def _head(path: str, rest: Any) -> torch.nn.Linear:
    """The linear head among an adapter's other weights."""
    weights = {name: t for name, t in rest.items() if name.rsplit(".", 1)[-1] == "weight" and "score" in name}
    if len(weights) != 1:
        raise ModelError(f"reward={path!r} is an adapter without a head named 'score'; a reward needs one.")
    name, weight = next(iter(weights.items()))
    bias = rest.get(name[: -len("weight")] + "bias")
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return head.eval()
