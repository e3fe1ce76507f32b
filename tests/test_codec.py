from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from alignstar.errors import ModelError, PromptError
from alignstar.models.hf.codec import HFCodec, check_same_tokens, load_tokenizer
from alignstar.models.toy import ToyCodec
from alignstar.text import SETTLED_EVERY, Growing
from alignstar.types import Ids, Message

CORPUS = ["hello world, this is a test of the world", "hello there, user: say hello", "naïve café"] * 4
CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level(*, bos: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<pad>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(CORPUS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<pad>", additional_special_tokens=["<|start|>"]
    )
    if bos:
        tokenizer.bos_token = "<s>"
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2: words begin with an underscore, unknown characters are bytes, decoding drops the leading space."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + fallback, show_progress=False)
    trained.train_from_iterator(CORPUS[:2], trainer)
    # Once more from its parts, since the trainer makes the bytes special tokens, which they are not.
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    core = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = trained.pre_tokenizer
    core.add_special_tokens(special)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BYTES = byte_level()
PIECES = sentencepiece_like()
CHAT = byte_level(bos=True, template=CHATML)
KINDS = {"bytes": BYTES, "pieces": PIECES}


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text("helo wrd,é€\n", min_size=1, max_size=20), data=st.data())
@settings(max_examples=60)
def test_the_parts_of_a_text_decode_to_its_parts(kind: str, text: str, data: st.DataObject) -> None:
    """Wherever a text's tokens are divided into prompt and response, the response continues the prompt."""
    codec = HFCodec(KINDS[kind])
    ids = tuple(KINDS[kind](text, add_special_tokens=False)["input_ids"])
    at = data.draw(st.integers(0, len(ids)))
    whole, prompt, response = codec.decode(ids), codec.decode(ids[:at]), codec.decode(ids[at:])
    if at in range(1, len(ids)) and (len(prompt) + len(response) < len(whole)):
        # The border divides a character, which neither part can show.
        assert not text.isascii()
        assert whole.startswith(prompt)
    elif "\N{REPLACEMENT CHARACTER}" not in response:
        assert prompt + response == whole
    assert whole.endswith(text)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_text_grows_as_its_tokens_do(kind: str, data: st.DataObject) -> None:
    """Whatever is in it, and wherever characters of several tokens are cut: at every length that of the whole."""
    codec = HFCodec(KINDS[kind])
    plain, others = ["hello world, ", " ", "  \n", "<|end|>", "a", "user:"], ["naïve", "é", "日本", "🙂"]
    parts = st.sampled_from(plain + data.draw(st.sampled_from([[], others])))
    text = "".join(data.draw(st.lists(parts, min_size=30, max_size=60)))
    ids = tuple(codec.tokenizer(text, add_special_tokens=False)["input_ids"])
    growing = Growing(codec)
    for n in range(1, len(ids) + 1):
        assert growing.text(ids[:n]) == codec.decode(ids[:n])
    if text.isascii():
        assert growing.settled > len(ids) - 2 * SETTLED_EVERY


class Reversed(ToyCodec):
    """No text is put together from those of its parts."""

    def decode(self, ids: Ids, *, special: bool = False) -> str:
        return super().decode(ids, special=special)[::-1]


def test_a_text_that_is_more_than_its_parts_is_decoded_whole() -> None:
    codec, ids = Reversed(6), tuple(i % 5 for i in range(100))
    growing = Growing(codec)
    for n in range(1, len(ids) + 1):
        assert growing.text(ids[:n]) == codec.decode(ids[:n])


def test_a_leading_space_stays() -> None:
    for tokenizer in KINDS.values():
        codec = HFCodec(tokenizer)
        ids = tuple(tokenizer("hello world", add_special_tokens=False)["input_ids"])
        hello = tokenizer("hello", add_special_tokens=False)["input_ids"]
        assert codec.decode(ids[len(hello) :]) == " world"
        assert codec.decode(()) == ""
        assert codec.decode((tokenizer.eos_token_id,)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_that_is_not_complete_is_left_out(kind: str) -> None:
    codec = HFCodec(KINDS[kind])
    ids = tuple(KINDS[kind]("aé€😀", add_special_tokens=False)["input_ids"])
    shown = [codec.decode(ids[:n]).lstrip() for n in range(len(ids) + 1)]
    assert shown[-1] == "aé€😀"
    assert all("aé€😀".startswith(text) for text in shown)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


def test_special_tokens_are_kept_only_when_asked_for() -> None:
    codec = HFCodec(CHAT)
    ids = (3, *CHAT("hello", add_special_tokens=False)["input_ids"], 1, 2)
    assert codec.decode(ids) == "hello"
    assert codec.decode(ids, special=True) == "<s>hello<|end|><pad>" == CHAT.decode(list(ids))


def test_spaces_before_punctuation_stay() -> None:
    tokenizer = byte_level()
    tokenizer.clean_up_tokenization_spaces = True
    text = "hello , world do n't"
    assert HFCodec(tokenizer).decode(tuple(tokenizer(text)["input_ids"])) == text


def test_a_plain_prompt_is_the_tokenizers_own_call() -> None:
    for tokenizer in (BYTES, PIECES):
        prompt = HFCodec(tokenizer).prompt("hello world")
        assert prompt.ids == tuple(tokenizer("hello world")["input_ids"])
        assert (prompt.text, prompt.messages) == ("hello world", (Message(role="user", content="hello world"),))
    plain = HFCodec(CHAT).prompt("hello", chat=False)
    assert plain.ids == tuple(CHAT("hello")["input_ids"])
    assert plain.ids[0] == 3


def test_a_chat_prompt_goes_through_the_template_once() -> None:
    codec = HFCodec(CHAT)
    prompt = codec.prompt("hello")
    assert prompt.text == "<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    assert prompt.ids == tuple(CHAT(prompt.text, add_special_tokens=False)["input_ids"])
    assert 3 not in prompt.ids
    turns = (Message(role="user", content="hello"), Message(role="assistant", content="hi"))
    assert codec.prompt([*turns, Message(role="user", content="so")]).text.count("<|start|>") == 4
    assert codec.prompt("").ids


def test_an_empty_prompt_needs_a_token_to_start_from() -> None:
    assert HFCodec(PIECES).prompt("").ids == (1,)
    gpt2_like = byte_level()
    gpt2_like.bos_token = "<|end|>"
    assert HFCodec(gpt2_like).prompt("").ids == (1,)
    with pytest.raises(PromptError, match="beginning-of-sequence"):
        HFCodec(BYTES, name="there").prompt("")
    with pytest.raises(PromptError, match="empty"):
        HFCodec(CHAT).prompt([])


def test_a_conversation_needs_a_template_that_takes_it() -> None:
    turns = [Message(role="user", content="a"), Message(role="user", content="b")]
    with pytest.raises(PromptError, match="chat template"):
        HFCodec(BYTES).prompt(turns)
    with pytest.raises(PromptError, match="chat template"):
        HFCodec(BYTES).prompt("a", chat=True)
    strict = byte_level(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match="roles must alternate"):
        HFCodec(strict).prompt(turns)


def test_end_and_padding_tokens() -> None:
    codec = HFCodec(BYTES, eos_ids=[7, 9])
    assert codec.eos_ids == {1, 7, 9}
    assert codec.pad_id == 2
    assert HFCodec(PIECES, eos_ids=[7]).pad_id == 2  # no padding token: its own end token
    nothing = byte_level()
    nothing.eos_token = nothing.pad_token = None
    assert HFCodec(nothing, eos_ids=[9, 7]).pad_id == 7
    assert HFCodec(nothing).eos_ids == frozenset()


def test_tokenizers_are_loaded_or_refused(tmp_path: Path) -> None:
    CHAT.save_pretrained(tmp_path / "chat")
    loaded = load_tokenizer(str(tmp_path / "chat"))
    assert HFCodec(loaded).prompt("hello") == HFCodec(CHAT).prompt("hello")
    GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(str(tmp_path / "bare"))
    (tmp_path / "nothing").mkdir()
    for unknown in (str(tmp_path / "nothing"), str(tmp_path / "missing"), "no-such/model"):
        with pytest.raises(ModelError) as caught:
            load_tokenizer(unknown)
        assert unknown in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        load_tokenizer(str(tmp_path / "file"))


def test_vocabularies_must_be_one_plus_added_tokens() -> None:
    size = len(BYTES)
    assert check_same_tokens(BYTES, byte_level()) == size
    more: Any = byte_level()
    more.add_tokens(["<new>", "<newer>"])
    assert check_same_tokens(BYTES, more) == check_same_tokens(more, BYTES) == size
    other: Any = byte_level()
    other.add_tokens(["<other>", "<newer>"])
    for one, two in ((BYTES, PIECES), (PIECES, BYTES), (more, other)):
        with pytest.raises(ModelError, match="different tokenizers"):
            check_same_tokens(one, two)


def words(vocab: dict[str, int]) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="a")))


def test_more_words_are_not_added_tokens() -> None:
    small = words({"a": 0, "b": 1})
    with pytest.raises(ModelError, match=r"'c' is missing in the first and number 2 in the second"):
        check_same_tokens(small, words({"a": 0, "b": 1, "c": 2}))
    gap, filled = words({"a": 0, "b": 2}), words({"a": 0, "b": 2, "c": 1})
    with pytest.raises(ModelError, match="'c'"):
        check_same_tokens(gap, filled)
    with pytest.raises(ModelError, match="'a' is number 0 in the first and number 1 in the second"):
        check_same_tokens(small, words({"a": 1, "b": 0}))
