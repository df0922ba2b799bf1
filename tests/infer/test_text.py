"""Text that grows: characters of several tokens, and stop strings wherever tokens cut them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nachim.infer.text import Text


def bytes_tokenizer() -> Tokenizer:
    """One token a byte, and one for "ab"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate([*alphabet, "ab"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = bytes_tokenizer()


def grown(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], Text]:
    """What was shown token by token, and at the end."""
    held, shown = Text(TOKENIZER, stop), []
    for token in TOKENIZER.encode(text).ids:
        held.add(token)
        if held.stopped:
            break
        shown.append(held.show())
    return [*shown, held.close()], held


@settings(max_examples=50, deadline=None)
@given(
    st.text(alphabet="ab cé漢🙂\n", max_size=20),
    st.lists(st.text(alphabet="ab c漢", min_size=1, max_size=4), max_size=3),
)
def test_what_is_shown_is_the_text_up_to_the_first_stop(text, stop):
    shown, held = grown(text, tuple(stop))
    places = [text.find(one) for one in stop if one in text]
    # The first stop string that is complete ends the text; where one contains another, tokens tell which that is.
    ends = [text.find(one) + len(one) for one in stop if one in text]
    wanted = text if not places else None
    assert "".join(shown) == held.whole
    assert held.stopped == bool(places)
    if wanted is None:
        assert held.whole in {text[:place] for place in places}
        assert len(held.whole) <= min(ends)
        assert all(one not in held.whole for one in stop)
    else:
        assert held.whole == wanted


def test_nothing_of_a_stop_string_is_shown_and_half_characters_wait():
    shown, held = grown("x漢yENDz", ("END",))
    assert "".join(shown) == "x漢y" and held.stopped
    assert shown[:4] == ["x", "", "", "漢"]
    shown, held = grown("xENy", ("END",))
    assert shown == ["x", "", "", "ENy", ""] and not held.stopped


def test_bytes_that_are_no_character_are_shown_at_last():
    held = Text(TOKENIZER, ())
    for token in TOKENIZER.encode("漢").ids[:2]:
        held.add(token)
    assert held.show() == ""
    assert held.close() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stop", [("ba",), ("abab",)])
def test_a_stop_string_may_begin_inside_a_token(stop):
    assert grown("cabababc", stop)[1].whole == "cabababc"[: "cabababc".find(stop[0])]
