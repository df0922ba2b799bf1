"""Constrained decoding: what is enforced of public schemas, what is falsely taken, and what it costs.

    python bench/constrain.py --schemas maskbench/data            # github.com/guidance-ai/jsonschemabench

Each file of the folder holds a schema and texts that are and are not of it. A text is walked token by token; it is
accepted when every token was allowed and it may end there. A false accept is a text accepted that is not of the
schema. The vocabulary is a byte-level BPE of 32,768 tokens, trained here on the source of the standard library;
`alone` are llguidance's own masks of the same texts. Most tokens are taken without a mask, if they are allowed: what
it takes to find that out of the token that the text has is `one`. Times are of the processor, so that a busy machine
changes them little.
Then eight requests are decoded together by an untrained model, under a schema and without, in turns. Without
--schemas only that is done.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

import llguidance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nachim.infer.constrain import Grammar, Vocabulary, json_schema
from nachim.infer.engine import Engine
from nachim.infer.folder import Loaded
from nachim.infer.request import Sampling
from nachim.model.build import build
from nachim.model.decoder import initialise
from nachim.spec import UserError, plain

END = "<|endoftext|>"
TEXT_BYTES = 12_000_000
KINDS = ("one", "masks", "alone")
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "n": {"type": "number"}},
        "required": ["name"],
    },
    "minItems": 100,
}
"""What the untrained model writes: it does not come to its end."""


def main() -> None:
    """Read the options, walk the schemas, print one table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=Path, help="folder of MaskBench files (schema, tests)")
    parser.add_argument("--sample", type=int, default=400, help="how many are drawn; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--vocab-size", type=int, default=32_768, help="tokens of the vocabulary")
    parser.add_argument("--rounds", type=int, default=5, help="turns of decoding with and without a schema")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    tokenizer = trained(asked.vocab_size)
    vocabulary = Vocabulary(tokenizer.to_str(), tokenizer.get_vocab_size(), [tokenizer.token_to_id(END)])
    found: dict[str, Any] = {}
    if asked.schemas is not None:
        files = sorted(asked.schemas.glob("*.json"))
        if not files:
            parser.error(f"{asked.schemas} holds no .json file")
        if asked.sample:
            files = random.Random(asked.seed).sample(files, min(asked.sample, len(files)))
        cases = [(path.stem, json.loads(path.read_text("utf-8"))) for path in files]
        found = summary([walked(case, name, tokenizer, vocabulary) for name, case in cases])
    found |= decoding(tokenizer, vocabulary, asked.rounds)
    if asked.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:>22}  {value}")


def trained(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens over the standard library's source."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if size > TEXT_BYTES or "site-packages" in path.parts:
            continue
        texts.append(path.read_text("utf-8", "replace"))
        size += len(texts[-1])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def walked(case: dict[str, Any], name: str, tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Any]:
    """What became of one schema: refused, or its false accepts and rejects, with the microseconds of every mask."""
    began = time.thread_time()
    try:
        grammar = json_schema(case["schema"])
        vocabulary.start(grammar)
    except UserError as error:
        return {"name": name, "refused": str(error)}
    found = {
        "name": name,
        "compile_us": micros(began),
        **{kind: [] for kind in KINDS},
        "accepts": [],
        "rejects": [],
        "wide": bool(grammar.valid),
    }
    for index, test in enumerate(case["tests"]):
        ids = tokenizer.encode(json.dumps(test["data"], ensure_ascii=False), add_special_tokens=False).ids
        if accepted(ids, grammar, vocabulary, found) != test["valid"]:
            found["rejects" if test["valid"] else "accepts"].append(index)
    return found


def accepted(ids: list[int], grammar: Grammar, vocabulary: Vocabulary, times: dict[str, list[float]]) -> bool:
    """Whether a text may be written token by token and end; the microseconds of each of `KINDS` join `times`, in turns.

    Raises ValueError where one token is judged otherwise than by the mask.
    """
    constraint, other = vocabulary.start(grammar), llguidance.LLMatcher(vocabulary.tokens, grammar.text, log_level=0)
    for position, token in enumerate((*ids, vocabulary.ends[0])):
        told = {}
        ways = {"one": lambda: constraint.allows(token), "masks": constraint.allowed, "alone": other.compute_bitmask}  # noqa: B023
        for kind in KINDS if position % 2 else KINDS[::-1]:
            began = time.thread_time()
            told[kind] = ways[kind]()
            times[kind].append(micros(began))
        if told["one"] != bool(told["masks"][token]):
            raise ValueError(f"token {token} is judged in two ways under {grammar.text[:200]}")
        if not told["one"]:
            return False
        constraint.accept(token)
        other.consume_token(token)
    return True


def decoding(tokenizer: Tokenizer, vocabulary: Vocabulary, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of eight requests with a schema and without, and what the schema adds, in percent."""
    decoder = plain(d_model=512, n_layers=8, d_head=64, vocab_size=vocabulary.width)
    model = build(decoder, decoder.d_model).eval()
    initialise(model, 0)
    engine = Engine(Loaded(model, tokenizer, frozenset(vocabulary.ends), 512))
    grammar, spent = json_schema(SCHEMA), {True: [], False: []}
    for turn in range(2 * rounds):
        constrained = bool(turn % 2)
        for seed in range(8):
            constraint = vocabulary.start(grammar) if constrained else None
            engine.add([1 + seed, 2, 3], Sampling(max_tokens=48, seed=seed, ignore_eos=True), constraint=constraint)
        engine.step()
        while len(engine.served) == 8:
            began = time.process_time()
            engine.step()
            spent[constrained].append(1000 * (time.process_time() - began))
        while not engine.idle:
            engine.step()
    plain_ms, held_ms = statistics.median(spent[False]), statistics.median(spent[True])
    added = round(100 * (held_ms / plain_ms - 1), 2)
    return {"step_ms": round(plain_ms, 2), "step_ms_constrained": round(held_ms, 2), "step_cost_percent": added}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all schemas, and times over all masks."""
    run = [one for one in results if "refused" not in one]
    times = {kind: [us for one in run for us in one[kind]] for kind in KINDS}
    whole = [one for one in run if not one["accepts"] and not one["rejects"]]
    why = Counter(
        one["refused"].removeprefix("the JSON schema cannot be enforced: ")[:60] for one in results if "refused" in one
    )
    return {
        "schemas": len(results),
        "passed": len(whole),
        "passed_share": round(len(whole) / len(results), 4),
        "strict": sum(not one["wide"] for one in whole),
        "refused": len(results) - len(run),
        "with_false_accepts": [one["name"] for one in run if one["accepts"]],
        "with_false_rejects": [one["name"] for one in run if one["rejects"]],
        **{f"{kind}_us": spread(found) for kind, found in times.items()},
        "compile_us_p50": statistics.median(one["compile_us"] for one in run),
        "compile_us_max": max(one["compile_us"] for one in run),
        "refused_for": dict(why.most_common(12)),
    }


def spread(found: list[float]) -> dict[str, float]:
    """How many microseconds were measured, and what they were."""
    found = sorted(found)
    told = {"count": len(found), "mean": round(statistics.fmean(found), 1), "p50": found[len(found) // 2]}
    return {**told, "p99": found[len(found) * 99 // 100], "max": found[-1]}


def micros(began: float) -> float:
    """Microseconds of this thread's processor time since `began`."""
    return round((time.thread_time() - began) * 1e6, 1)


if __name__ == "__main__":
    main()
