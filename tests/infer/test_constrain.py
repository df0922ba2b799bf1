"""What is written under a constraint is of it, whoever judges; what cannot be enforced is refused."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench._chatty import checkpoint
from nachim.infer import constrain
from nachim.infer.constrain import Grammar, Vocabulary
from nachim.infer.engine import Engine
from nachim.infer.json_valid import Validator, matches
from nachim.infer.request import Sampling
from nachim.infer.sample import adjusted, law, uniform
from nachim.infer.sample import draw as drawn
from nachim.spec import UserError

END = "<|endoftext|>"
TEXT = ['{"name": "Ada", "age": 36, "tags": ["a", "b"], "near": true}', "null false 서울 the and of to in -1.5e3"] * 20


def byte_level() -> Tokenizer:
    """As ours are: byte-level, the end of text first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    return made


def byte_fallback() -> Tokenizer:
    """As Llama 2's is: spaces as signs, bytes as tokens where a character has none."""
    signs = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256)), *'▁{}[]",:abcdefghijklmnopqrstuvwxyz']
    pairs = [("t", "h"), ("th", "e"), ("▁", "a")]
    vocabulary = {sign: i for i, sign in enumerate([*signs, *(a + b for a, b in pairs)])}
    made = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(["<s>", END])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


TOKENIZERS = {"byte-level": byte_level(), "byte fallback": byte_fallback()}
EXTRA = 5
"""Ids of the model beyond its tokenizer's."""


@pytest.fixture(scope="module", params=TOKENIZERS)
def vocabulary(request) -> Vocabulary:
    tokenizer = TOKENIZERS[request.param]
    made = Vocabulary(tokenizer.to_str(), tokenizer.get_vocab_size() + EXTRA, [tokenizer.token_to_id(END)])
    made.tokenizer = tokenizer
    return made


def written(vocabulary: Vocabulary, grammar: Grammar, seed: int, most: int = 600) -> str | None:
    """A text drawn evenly from the tokens allowed, that hastens to its end; None where it found none."""
    draw, state, tokens = random.Random(seed), vocabulary.start(grammar), []
    for _ in range(most):
        allowed = state.allowed().nonzero()[:, 0].tolist()
        if not allowed:
            return None
        ends = [token for token in allowed if token in vocabulary.ends]
        if (ends and draw.random() < 0.5) or allowed == ends:
            return vocabulary.tokenizer.decode(tokens)
        texts = {token: vocabulary.tokens.decode_bytes([token]) for token in allowed if token not in ends}
        solid = [token for token, text in texts.items() if text.strip()] or list(texts)
        closing = [token for token in solid if texts[token][:1] in b'"}]']
        tokens.append(draw.choice(closing if closing and draw.random() < 0.4 else solid))
        state.accept(tokens[-1])
    return None


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "서울", None]}}, "required": ["a"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "object", "properties": {"d": {"type": "string", "format": "date"}}, "required": ["d"]},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}},
    {"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "integer", "multipleOf": 5}]},
    {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
    {"not": {"type": "string"}, "type": ["string", "integer"]},
    {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 2, "propertyNames": {"maxLength": 3}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_json_of_a_schema_is_written(vocabulary, schema):
    texts = [written(vocabulary, constrain.json_schema(schema), seed) for seed in range(9)]
    found = [text for text in texts if text is not None]
    assert found
    for text in found:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize(
    ("made", "fits"),
    [
        (lambda: constrain.regex("[0-9]{3}(-[a-z]+)?"), "[0-9]{3}(-[a-z]+)?"),
        (lambda: constrain.choices(["yes", 'a "b"', "é"]), 'yes|a "b"|é'),
        (lambda: constrain.grammar('start: "a" b\nb: /[xy]/ "!"'), "a[xy]!"),
        (lambda: constrain.grammar('root ::= "a" b\nb ::= [xy] "!"', "gbnf"), "a[xy]!"),
        (constrain.json_object, r"(?s)\{.*\}"),
    ],
)
def test_texts_of_other_constraints_are_written(vocabulary, made, fits):
    texts = [written(vocabulary, made(), seed) for seed in range(3)]
    assert any(text is not None for text in texts)
    assert all(text is None or re.fullmatch(fits, text) for text in texts)


def test_a_text_that_fits_is_allowed_token_by_token(vocabulary):
    state = vocabulary.start(constrain.json_schema(SCHEMAS[0]))
    for token in vocabulary.tokenizer.encode('{"a": 12, "b": "서울"}', add_special_tokens=False).ids:
        assert state.allowed()[token]
        state.accept(token)
    allowed = state.allowed()
    assert allowed.nonzero()[:, 0].tolist() == vocabulary.ends
    assert allowed.dtype == torch.bool
    assert len(allowed) == vocabulary.width


def test_a_fork_goes_its_own_way(vocabulary):
    first = vocabulary.start(constrain.choices(["ab", "cd"]))
    other = first.fork()
    a, c = (vocabulary.tokenizer.encode(sign, add_special_tokens=False).ids[0] for sign in "ac")
    first.accept(a)
    other.accept(c)
    assert not torch.equal(first.allowed(), other.allowed())
    assert torch.equal(vocabulary.start(constrain.choices(["cd"])).fork().allowed().nonzero()[:1, 0], torch.tensor([c]))


def test_after_a_token_that_was_not_allowed_nothing_is(vocabulary):
    state = vocabulary.start(constrain.choices(["ab"]))
    state.accept(vocabulary.tokenizer.encode("z", add_special_tokens=False).ids[0])
    assert not state.allowed().any()


@pytest.mark.parametrize(
    "schema",
    [
        *(
            {"type": "no"},
            {"type": 5},
            {"enum": []},
            {"$ref": "#/none"},
            {"$ref": "http://127.0.0.1:1/x"},
            {"pattern": "("},
        ),
        *({"type": "integer", "minimum": 2, "maximum": 1}, {"type": "string", "minLength": 3, "maxLength": 2}, False),
        *({"x-guidance": {"lenient": True}}, {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"required": "a"}),
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"default": float("nan")},
    ],
    ids=repr,
)
def test_no_schema_and_one_that_nothing_satisfies_are_refused(schema):
    with pytest.raises(UserError, match="schema"):
        constrain.json_schema(schema)


def test_other_constraints_that_are_none_are_refused(vocabulary):
    for make in (
        lambda: constrain.regex("("),
        lambda: constrain.regex("(?=a)b"),
        lambda: constrain.regex("x" * 1_000_001),
        lambda: constrain.choices([]),
        lambda: constrain.choices(["a", ""]),
        lambda: constrain.grammar("start: missing"),
        lambda: constrain.grammar('root ::= "a', "gbnf"),
        lambda: vocabulary.start(constrain.regex(r"[^\s\S]")),
        lambda: vocabulary.start(constrain.grammar('start: a\na: a "x"')),
        lambda: Vocabulary(TOKENIZERS["byte-level"].to_str(), 400, []),
        lambda: Vocabulary("{}", 400, [0]),
    ):
        with pytest.raises(UserError):
            make()


@settings(max_examples=40)
@given(text=st.text(max_size=12), pattern=st.sampled_from(["a", "^a", "b$", "^[^b]*$", r"\d", "^(a|b)+$", "", "x{2,}"]))
def test_expressions_match_as_pythons_do(text, pattern):
    expected = re.search(pattern.replace("$", r"\Z"), text) is not None
    assert matches(pattern, text) == expected


def test_an_expression_that_backtracks_without_end_is_matched_at_once():
    assert not matches("^(a+)+$", "a" * 2000 + "!")
    assert not Validator({"patternProperties": {"^(a+)+$": False}})('{"' + "a" * 500 + '": 1}')


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
        {
            "patternProperties": {"b": {"minimum": 3}},
            "additionalProperties": {"type": "string"},
            "properties": {"c": {}},
        },
        {"pattern": "^x+$"},
        {"items": {"pattern": "x"}},
    ],
)
@pytest.mark.parametrize(
    "value", [{"a": 1}, {"ab": 2, "c": []}, {"d": "s"}, {"d": 1}, {"b": 9}, "xx", "y", ["x", 1, "y"]]
)
def test_the_validator_agrees_with_jsonschema(schema, value):
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert Validator(schema)(json.dumps(value)) == expected


SHAPE = r'\{"a": (true|false), "b": "[xyz]{2,5}"\}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("tiny"))


def served(engine: Engine, tokens_file, temperature: float) -> list[tuple[str, str | None]]:
    """Text and end of four requests under one constraint, beside four that are free."""
    vocabulary = Vocabulary(tokens_file, engine.model.spec.vocab_size, sorted(engine.loaded.ends))
    prompt = 'again {"a": true, "b": "xy"} and again {"a": true, "b": "xy"}'
    held, texts, ends = [], {}, {}
    for seed in range(4):
        asked = Sampling(max_tokens=60, temperature=temperature, seed=seed)
        held.append(engine.add(prompt, asked, constraint=vocabulary.start(constrain.regex(SHAPE))))
        engine.add(prompt[seed:], asked)
    while not engine.idle:
        for chunk in engine.step():
            texts[chunk.request] = texts.get(chunk.request, "") + chunk.text
            ends[chunk.request] = chunk.finish_reason
    return [(texts[request], ends[request]) for request in held]


@pytest.mark.parametrize("options", [{"draft": "ngram"}, {"block": 16, "budget": 16}, {"invariant": False}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_keeps_to_a_constraint_however_it_works(folder, options, temperature):
    tokens = folder / "huggingface" / "tokenizer.json"
    found = served(Engine(folder, **options), tokens, temperature)
    assert all(re.fullmatch(SHAPE, text) and end == "stop" for text, end in found)
    if temperature == 0.0:
        assert found == served(Engine(folder), tokens, temperature)


def test_texts_of_one_grammar_share_what_was_built_and_nothing_else(vocabulary):
    grammar, draw = constrain.json_schema(SCHEMAS[0]), random.Random(3)
    began = vocabulary.start(grammar).allowed()
    texts = [vocabulary.start(grammar) for _ in range(3)]
    apart = [Vocabulary(vocabulary.tokenizer.to_str(), vocabulary.width, vocabulary.ends).start(grammar) for _ in texts]
    for _ in range(60):
        turn = draw.randrange(3)
        allowed = texts[turn].allowed()
        assert torch.equal(allowed, apart[turn].allowed())
        tokens = [token for token in allowed.nonzero()[:, 0].tolist() if token not in vocabulary.ends]
        if tokens:
            token = draw.choice(tokens)
            texts[turn].accept(token)
            apart[turn].accept(token)
    assert torch.equal(vocabulary.start(grammar).allowed(), began)


def test_a_grammar_in_which_a_text_went_wrong_is_begun_anew(vocabulary):
    grammar = constrain.choices(["ab", "cd"])
    began = vocabulary.start(grammar)
    allowed = began.allowed()
    began.accept(vocabulary.ends[0] + 1)
    assert not began.allowed().any()
    assert torch.equal(vocabulary.start(grammar).allowed(), allowed)


def test_no_more_grammars_are_kept_than_may_be(vocabulary):
    for number in range(constrain.KEPT + 5):
        vocabulary.start(constrain.choices([f"a{number}"]))
    vocabulary.start(constrain.choices(["a9"]))
    vocabulary.start(constrain.choices(["b"]))
    kept = list(vocabulary._kept)
    assert len(kept) == constrain.KEPT
    assert [constrain.choices([text]).text for text in ("a9", "b")] == kept[-2:]


@pytest.mark.parametrize("text", ["1" + "0" * 400, "1e400", "-1e400", "1" * 5000, "[" * 100_000, '"\\ud800"'])
def test_whatever_a_text_does_to_the_validator_it_does_not_pass(text):
    schema = {"anyOf": [{"multipleOf": 0.5, "type": "number"}, {"type": "array", "uniqueItems": True}]}
    assert not Validator(schema)(text)
    assert Validator(schema)("2.5")


class Some:
    """Allows some tokens, always the same."""

    def __init__(self, allowed: torch.Tensor) -> None:
        self.mask, self.masks = allowed, 0

    def allowed(self) -> torch.Tensor:
        self.masks += 1
        return self.mask

    def allows(self, token: int) -> bool:
        return bool(self.mask[token])


def asked(engine: Engine, allowed: torch.Tensor, **options):
    """A sample that is to choose among the tokens allowed."""
    number = engine.add([1, 2, 3], Sampling(**options), constraint=Some(allowed))
    return engine.served[number].samples[0]


@pytest.mark.parametrize("grammar", ["schema", "wide", "regex"])
def test_one_token_is_allowed_where_the_mask_says_so(vocabulary, grammar):
    made = {"schema": lambda: constrain.json_schema(SCHEMAS[0]), "regex": lambda: constrain.regex("[ab]{2,3}é?.*")}
    made["wide"] = lambda: constrain.json_schema(SCHEMAS[5])
    draw, state = random.Random(2), vocabulary.start(made[grammar]())
    for _ in range(12):
        allowed = state.allowed()
        assert [state.allows(token) for token in range(vocabulary.width)] == allowed.tolist()
        tokens = [token for token in allowed.nonzero()[:, 0].tolist() if token not in vocabulary.ends]
        if not tokens:
            break
        state.accept(draw.choice(tokens))


@pytest.mark.parametrize(
    "options",
    [{"top_p": 0.7}, {"top_k": 5, "min_p": 0.01}, {"repetition_penalty": 1.4, "top_k": 9}, {"temperature": 0.0}],
)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.03])
def test_a_law_that_is_cut_off_is_that_of_the_tokens_allowed(folder, options, share):
    engine, draw = Engine(folder), torch.Generator().manual_seed(1)
    width = engine.model.spec.vocab_size
    allowed = torch.rand(width, generator=torch.Generator().manual_seed(5)) < share
    for seed in range(6):
        sample = asked(engine, allowed, seed=seed, **options)
        logits_V, sampling = 3 * torch.randn(width, generator=draw), Sampling(seed=seed, **options)
        masked_V = adjusted(logits_V, [1, 2, 3], 3, sampling, allowed)
        u = uniform(sampling, 0, 3, "residual")
        assert sample.choose(logits_V) == (
            int(masked_V.argmax()) if sampling.greedy else drawn(law(masked_V, sampling), u)
        )
        assert sample.choose(torch.full((width,), float("nan"))) is None


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "repetition_penalty": 1.3}])
def test_tokens_follow_the_law_of_those_allowed_with_few_masks(folder, options):
    engine = Engine(folder)
    width = engine.model.spec.vocab_size
    logits_V = torch.full((width,), -9.0)
    logits_V[:8] = torch.linspace(-1, 1, 8)
    allowed = torch.ones(width, dtype=torch.bool)
    allowed[[2, 7]] = False
    counts, masks = torch.zeros(width), 0
    for seed in range(2000):
        sample = asked(engine, allowed, seed=seed, **options)
        counts[sample.choose(logits_V)] += 1
        masks += sample.constraint.masks
    law_V = law(adjusted(logits_V, [1, 2, 3], 3, Sampling(**options), allowed), Sampling(**options))
    wanted = (2000 * law_V)[[0, 1, 3, 4, 5, 6]]
    found = counts[[0, 1, 3, 4, 5, 6]]
    assert counts[[2, 7]].sum() == 0
    assert chisquare(found.numpy(), wanted.numpy() * found.sum().item() / wanted.sum().item()).pvalue > 1e-3
    assert 0.15 < masks / 2000 < 0.6  # as often as a token was not allowed


def test_where_nothing_is_allowed_nothing_is_drawn(folder):
    engine = Engine(folder)
    width = engine.model.spec.vocab_size
    assert asked(engine, torch.zeros(width, dtype=torch.bool)).choose(torch.zeros(width)) is None


def test_one_of_thousands_of_choices_that_begin_alike_is_written(vocabulary):
    texts = [f"item {number}" for number in range(3000)]
    state, text = vocabulary.start(constrain.choices(texts)), "item 2718"
    for token in vocabulary.tokenizer.encode(text, add_special_tokens=False).ids:
        assert state.allows(token) and state.allowed()[token]
        state.accept(token)
    assert state.allowed()[vocabulary.ends[0]]
    assert not state.allows(vocabulary.tokenizer.encode("item", add_special_tokens=False).ids[0])
