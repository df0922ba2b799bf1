"""What the methods ask, what they read out of answers, and what they refuse."""

from __future__ import annotations

import random

import pytest

from nachim.data.evolve import BREADTH, DEPTH, Evolve
from nachim.data.instruct import Ask, Candidate, SelfInstruct, Task, read_tasks
from nachim.data.read import Report
from nachim.data.stage import Drop
from nachim.spec import UserError

SEEDS = [Task(f"s{n}", f"Do the thing number {n} with care.", "", f"done {n}") for n in range(10)]
LIST = Ask("prompt", ("s0",), "list")


def told(found: list[str | Drop]) -> list[str]:
    return [one.reason if isinstance(one, Drop) else one for one in found]


def test_a_list_shows_seeds_and_a_few_of_its_own_and_is_the_same_again():
    made = [Task(f"self-instruct/{n}", f"An own task of number {n}.") for n in range(5)]
    first, again = (SelfInstruct(per_round=3).asks(SEEDS, made, 4, random.Random(7)) for _ in range(2))
    assert first == again and len({ask.prompt for ask in first}) == 3
    for ask in first:
        assert len(ask.parents) == 8 and sum(parent.startswith("self") for parent in ask.parents) == 2
        assert ask.prompt.endswith("\nTask 9:") and ask.stop == ("Task 17",)


@pytest.mark.parametrize(
    ("answer", "cut", "found"),
    [
        (" Name a bird.\nTask 10: Name a fish.\nTask 11: Nam", True, ["Name a bird.", "Name a fish.", "cut short"]),
        ("Here are more:\n1. Name a bird.\n2) Name a fish.", False, ["Name a bird.", "Name a fish."]),
        ("Task 9: Name a bird.", False, ["Name a bird."]),
        ("  \n ", False, ["no task in the answer"]),
    ],
)
def test_lists_are_read_however_they_are_numbered(answer, cut, found):
    assert told(SelfInstruct().parsed(LIST, answer, cut)) == found


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Sort words.", "too short"),
        ("word " * 151, "too long"),
        ("- Name a bird of prey.", "begins with a sign"),
        ("Say what the picture, above, shows.", "about what text cannot hold"),
        ("숫자 세 개를 크기 순서로 놓아라.", None),
    ],
)
def test_what_no_assistant_could_do_is_refused(instruction, reason):
    assert SelfInstruct().refused(Candidate(instruction, LIST)) == reason


def test_examples_come_input_first_or_label_first():
    method, plain = SelfInstruct(), Candidate("Turn the word round.", LIST)
    task = Task("x", plain.instruction)
    label = method.settled(plain, " Yes, always.")
    assert label.kind == "classification" and method.settled(plain, "It depends").kind == "open"
    assert method.request(label, SEEDS, random.Random(0)).prompt.endswith("\nLabel:")
    assert method.filled(label, " good\nInput: a fine day", task) == Task("x", task.instruction, "a fine day", "good")
    ask = method.request(plain, SEEDS, random.Random(0))
    assert ask.prompt.endswith("\nInput:") and len(ask.parents) == 2
    assert method.filled(plain, " abc\nOutput: cba", task) == Task("x", task.instruction, "abc", "cba")
    assert method.filled(plain, "None.\nOutput: cba", task).input == ""
    assert method.filled(plain, "abc", task).reason == "no output in the answer"
    assert method.filled(plain, "abc\nOutput: abc", task).reason == "the output repeats the input"


def test_evolution_goes_round_the_seeds_and_takes_the_latest_version():
    method = Evolve(per_round=4)
    rounds = [method.asks(SEEDS, [], number, random.Random(number)) for number in range(5)]
    assert [ask.root for asks in rounds for ask in asks] == [f"s{n % 10}" for n in range(20)]
    made = [Task("s1/0000-001", "The first one."), Task("s1/0003-000", "The second version.")]
    asks = method.asks(SEEDS, made, 0, random.Random(0))
    assert asks[1].parents == ("s1/0003-000",) and "The second version." in asks[1].prompt
    names = {ask.operation for number in range(40) for ask in method.asks(SEEDS, [], number, random.Random(number))}
    assert names == {*DEPTH, BREADTH}


def test_evolution_eliminates_by_its_four_rules():
    method, task = Evolve(), Task("s0/1", "Name three birds of prey and their prey.")
    candidate = Candidate(task.instruction, Ask("prompt", ("s0",), "deepen", root="s0"))
    assert method.settled(candidate, "Equal.").reason == "nothing gained"
    assert method.settled(candidate, "Different").kind == "deepen"
    assert method.filled(candidate, "Sorry, I cannot do that.", task).reason == "the answer is an excuse"
    assert method.filled(candidate, "sorry " + "word " * 90, task).output.startswith("sorry")
    assert method.filled(candidate, "... to the, of!", task).reason == "the answer has no word of content"
    assert method.refused(Candidate("Here is the harder task you want.", LIST)) == "echoes the prompt"
    assert told(method.parsed(LIST, "Name a", True)) == ["cut short"]
    assert told(method.parsed(LIST, " ", False)) == ["no task in the answer"]


def test_lines_that_are_no_tasks_are_counted(tmp_path):
    path, report = tmp_path / "seeds.jsonl", Report()
    lines = ['{"id": 3, "instruction": " Name a bird. ", "input": 7, "output": "owl"}', "junk", '{"instruction": " "}']
    path.write_text("\n".join([*lines, '{"id": "3", "instruction": "Twice"}', '{"instruction": "Go."}']))
    assert read_tasks(path, report) == [Task("3", "Name a bird.", "", "owl"), Task("line 5", "Go.")]
    counts = {reason: lost.count for reason, lost in report.skipped.items()}
    assert counts == {"broken JSON line": 1, "no instruction": 1, "an id that was there before": 1}
    path.write_text('{"instruction": ""}')
    with pytest.raises(UserError, match=r"no task in .*seeds.jsonl; 1 left out: no instruction"):
        read_tasks(path, Report())
