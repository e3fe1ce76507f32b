import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignstar.errors import OptionError
from alignstar.text import REPLACEMENT, Stops, complete_characters, decoded

# A small alphabet, so that stop strings overlap each other and themselves.
texts = st.text("ab\n", max_size=12)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def stream(pieces: list[str], stops: Stops) -> tuple[list[str], bool]:
    """What a reader is shown, piece by piece, and whether a stop string ended it."""
    text, shown = "", []
    for piece in pieces:
        text += piece
        cut, stopped = stops.cut(text)
        shown.append(cut if stopped else stops.safe(text))
        if stopped:
            return shown, True
    return [*shown, text], False


@given(text=texts, strings=stop_lists, data=st.data())
def test_where_tokens_end_changes_nothing(text: str, strings: list[str], data: st.DataObject) -> None:
    stops = Stops(strings)
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    shown, stopped = stream(pieces, stops)
    assert (shown[-1], stopped) == stops.cut(text)


@given(text=texts, strings=stop_lists, data=st.data())
def test_what_was_shown_is_never_taken_back(text: str, strings: list[str], data: st.DataObject) -> None:
    shown, _ = stream(list(text), Stops(strings))
    for earlier, later in itertools.pairwise(shown):
        assert later.startswith(earlier)


@given(text=texts, strings=stop_lists)
def test_what_is_left_holds_no_stop_string(text: str, strings: list[str]) -> None:
    cut, stopped = Stops(strings).cut(text)
    assert not any(s in cut for s in strings)
    assert stopped == any(s in text for s in strings)
    assert text.startswith(cut)


@given(text=texts, strings=stop_lists)
def test_held_back_text_could_become_a_stop_string(text: str, strings: list[str]) -> None:
    stops = Stops(strings)
    if stops.cut(text)[1]:
        return
    held = text[len(stops.safe(text)) :]
    assert held == "" or any(s.startswith(held) for s in strings)


def test_the_stop_string_that_ends_first_wins() -> None:
    assert Stops(["abcd", "bc"]).cut("xabcd") == ("xa", True)
    assert Stops(["bc", "abc"]).cut("xabc") == ("x", True)
    assert Stops(["\n\nHuman:"]).cut("Yes.\n\nHuman: no") == ("Yes.", True)
    assert Stops(()).cut("abc") == ("abc", False)
    assert Stops(["\n\nHuman:"]).safe("Yes.\n\nHum") == "Yes."


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(OptionError, match="empty"):
        Stops(["a", ""])


@given(st.text(max_size=8))
def test_bytes_of_an_unfinished_character_are_left_out(text: str) -> None:
    """Tokens are bytes, decoded as byte-level vocabularies do."""
    data = text.encode()

    def decode(ids: tuple[int, ...]) -> str:
        return bytes(ids).decode(errors="replace")

    for end in range(len(data) + 1):
        shown = decoded(tuple(data[:end]), decode)
        finished = data[:end].decode(errors="ignore")
        # A replacement character that was said is, at the very end, not told from unfinished bytes.
        assert shown == finished or (finished.endswith(REPLACEMENT) and shown == complete_characters(finished))


@given(st.text("aé€😀", max_size=6))
def test_unfinished_bytes_do_not_spoil_the_characters_before_them(text: str) -> None:
    """Tokens are bytes, decoded as byte fallback does: a run that is no valid text becomes replacement characters."""
    data = text.encode()

    def decode(ids: tuple[int, ...]) -> str:
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(ids)

    for end in range(len(data) + 1):
        assert decoded(tuple(data[:end]), decode) == data[:end].decode(errors="ignore")
