"""The scheduler over many histories: no page is lost or owned twice, and everyone is served."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nachim.infer.pages import GONE, Pages
from nachim.infer.prefix import hashes
from nachim.infer.schedule import Scheduler
from nachim.infer.sequence import Sequence

PAGE, BLOCK, LONGEST = 4, 8, 40


def scheduler(pages: int = 10, budget: int = 16, most: int = 6, window: int = 6, packed: bool = False) -> Scheduler:
    """One with two groups of pages, of which each holds the longest sequence alone."""
    pools = {None: Pages(pages), window: Pages(pages)}
    return Scheduler(pools, PAGE, BLOCK, budget, most, patience=8, kept=4, packing=set(pools) if packed else ())


def arrival(plan: Scheduler, number: int, prompt: list[int], priority: int, samples: int) -> Sequence:
    """A sequence that waits."""
    made = Sequence(number, 0, list(prompt), len(prompt), plan.rank(priority), width=samples)
    made.keys = hashes(prompt, BLOCK)
    plan.add(made)
    return made


def owned(plan: Scheduler) -> dict[int | None, Counter[int]]:
    """How often each page stands in a table or a kept block."""
    found = {group: Counter() for group in plan.pools}
    for held in plan.running:
        for group, table in held.tables.items():
            found[group].update(page for page in table if page != GONE)
    for block in plan.prefixes.blocks.values():
        for group, pages in block.pages.items():
            found[group].update(page for page in pages if page != GONE)
    return found


def hold(plan: Scheduler) -> None:
    """Every page has as many owners as hold it, and is free where it has none."""
    found = owned(plan)
    for group, pool in plan.pools.items():
        assert pool.owners == [found[group][page] for page in range(len(pool.owners))]
        assert pool.free == pool.owners.count(0)
    assert all(held.tables == {} and held.computed == 0 for held in plan.waiting)
    assert plan.running == sorted(plan.running, key=lambda held: held.rank)


def run_pass(plan: Scheduler, wanted: dict[int, int]) -> None:
    """One pass as an engine does it, `wanted` tokens of each request."""
    todo = plan.plan()
    written = Counter()
    for held, begin, end in todo.rows + todo.blocks:
        assert held in plan.running and begin < end
        for group, table in held.tables.items():
            for page in range(begin // PAGE, -(-end // PAGE)):
                assert table[page] != GONE
                assert plan.pools[group].owners[table[page]] == 1 or page * PAGE < begin
            written.update({(group, table[page]) for page in range(begin // PAGE, -(-end // PAGE))})
    rows = sum(end - begin for _, begin, end in todo.rows)
    assert rows <= max(plan.budget, len(todo.rows))
    blocks = sum(end - begin for _, begin, end in todo.blocks)
    assert not blocks or rows + blocks <= plan.budget or len(todo.blocks) == 1
    assert not todo.rows or len(todo.blocks) == len({held for held, _, _ in todo.blocks})
    for held, begin, end in todo.blocks:
        plan.pack(held, end)
        if end - begin == BLOCK:
            plan.keep(held, begin)
        plan.done(held, end)
        if end == held.n_prompt == len(held.tokens):
            for other in [held, *(plan.fork(held, number) for number in range(1, held.width))]:
                other.tokens.append(0)
    for held, begin, end in todo.rows:
        assert not plan.packing or begin // BLOCK == (end - 1) // BLOCK
        plan.pack(held, end)
        plan.done(held, end)
        if end == len(held.tokens):
            held.tokens.append(0)
    for held in list(plan.running):
        if len(held.tokens) - held.n_prompt >= wanted[held.request]:
            plan.remove(held)


REQUEST = st.tuples(
    st.integers(1, 24), st.integers(1, 12), st.integers(-1, 1), st.integers(1, 3), st.booleans(), st.integers(0, 5)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=12), st.integers(10, 24), st.integers(1, 32), st.booleans())
def test_no_page_is_lost_or_owned_twice_and_everyone_is_served(requests, pages, budget, packed):
    plan, wanted, aborted = scheduler(pages, budget, window=11 if packed else 6, packed=packed), {}, []
    for number, (length, tokens, priority, samples, alike, gap) in enumerate(requests):
        wanted[number] = tokens
        prompt = list(range(length)) if alike else [100 * number + place for place in range(length)]
        made = arrival(plan, number, prompt, priority, samples)
        for _ in range(gap):
            run_pass(plan, wanted)
            hold(plan)
        if gap == 5 and (made in plan.running or made in plan.waiting):
            plan.remove(made)
            aborted.append(made)
            hold(plan)
    for _ in range(2000):
        if not plan.running and not plan.waiting:
            break
        run_pass(plan, wanted)
        hold(plan)
    assert not plan.running and not plan.waiting
    while plan.prefixes.forget():
        hold(plan)
    assert all(pool.free == len(pool.owners) for pool in plan.pools.values())


def test_a_low_priority_is_overtaken_for_a_while_only():
    plan, wanted = scheduler(budget=8, most=1), {0: 1}
    patient = arrival(plan, 0, [1] * 8, 1, 1)
    passes = 0
    while patient in plan.waiting or patient in plan.running:
        wanted[passes + 1] = 1
        arrival(plan, passes + 1, [passes + 2] * 8, 0, 1)
        run_pass(plan, wanted)
        passes += 1
        assert passes < 40
    assert passes > 2  # it was overtaken


def test_a_fork_copies_the_page_it_writes_to_and_no_other():
    plan = scheduler(pages=20)
    arrival(plan, 0, list(range(10)), 0, 2)
    first = plan.waiting[0]
    run_pass(plan, {0: 9})
    run_pass(plan, {0: 9})
    forked = next(held for held in plan.running if held.sample == 1)
    assert first.tables[None][:2] == forked.tables[None][:2]
    assert first.tables[None][2] != forked.tables[None][2]


def test_a_whole_block_is_packed_into_half_its_pages():
    plan = scheduler(pages=20, window=11, packed=True)
    arrival(plan, 0, list(range(20)), 0, 2)
    plan.prefixes.most = 0
    held = plan.waiting[0]
    run_pass(plan, {0: 9})
    run_pass(plan, {0: 9})
    forked = next(one for one in plan.running if one is not held)
    first, second, third = (held.tables[None][place : place + 2] for place in (0, 2, 4))
    assert first[0] == first[1] != second[0] == second[1]
    assert plan.pools[None].owners[first[0]] == 4  # two places in each of two tables
    assert len(set(third)) == 1 and forked.tables[None][:4] == held.tables[None][:4]
    for _ in range(4):
        run_pass(plan, {0: 9})
    assert held.tables[None][4] == held.tables[None][5] != forked.tables[None][4] == forked.tables[None][5]
    assert held.tables[11][:4] == [first[0]] * 2 + [GONE] * 2 or held.tables[11][:2] == [GONE] * 2


def test_a_long_prompt_lets_others_generate():
    plan = scheduler(pages=40, budget=32)
    arrival(plan, 0, [1] * 4, 0, 1)
    run_pass(plan, {0: 9})
    for number in (1, 2):
        arrival(plan, number, [number] * 36, 0, 1)
    begun, going = plan.plan(), plan.waiting + plan.running
    assert [end for _, _, end in begun.blocks] == [8, 8]
    for held, _, end in begun.rows + begun.blocks:
        plan.done(held, end)
    assert len(plan.plan().blocks) == 1
    assert len(going) == 3


def test_a_window_frees_what_no_token_reaches_any_more():
    plan = scheduler(pages=20, window=6)
    arrival(plan, 0, list(range(24)), 0, 1)
    plan.prefixes.most = 0
    held = plan.waiting[0]
    for _ in range(4):
        run_pass(plan, {0: 9})
    # The next token, 26 say, sees 5 before it: pages 0 to 4 hold tokens 0 to 19.
    assert held.tables[6].count(GONE) == (held.computed - 5) // PAGE
    assert GONE not in held.tables[None]


def test_a_block_kept_is_found_by_the_tokens_up_to_it_alone():
    plan = scheduler(pages=20)
    arrival(plan, 0, list(range(20)), 0, 1)
    for _ in range(3):
        run_pass(plan, {0: 1})
    same, other = arrival(plan, 1, [*range(16), 99, 98], 0, 1), arrival(plan, 2, [5, *range(1, 20)], 0, 1)
    plan.plan()
    assert same.computed == 16
    assert other.computed == 0
