"""What the next pass reads: continuous batching under a budget of tokens. Numbers only, and no clock.

Every pass first reads one token (and its drafts) of each sequence that is generating, then blocks of prompts, in
chunks, while the budget lasts. A long prompt does not hold up those who generate: beside their tokens its first block
is read, and then one a pass of all the prompts that were begun (stall-free batching, arXiv 2403.02310, in whole
blocks). Who finds no page takes those of the sequence served last, which begins again.

Groups may be packed: a whole block of a sequence then moves into half its pages, each of which stands twice in the
table and has an owner for each time.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nachim.infer.pages import GONE, Pages
from nachim.infer.prefix import Group, Prefixes
from nachim.infer.sequence import Sequence


@dataclass
class Plan:
    """Tokens [begin, end) of sequences to read: blocks of prompts alone, others as rows of one batch.

    `copies` are pages (group, from, to) to be copied first.
    """

    blocks: list[tuple[Sequence, int, int]] = field(default_factory=list)
    rows: list[tuple[Sequence, int, int]] = field(default_factory=list)
    copies: list[tuple[Group, int, int]] = field(default_factory=list)


class Scheduler:
    """Sequences waiting and running, and their pages. `patience` passes make up for one step of priority.

    Beside sequences that generate `beside` blocks are read of prompts that were begun.
    In groups of `packing` whole blocks are packed, so that no pass reads rows of a sequence beyond the end of a block.
    """

    def __init__(
        self,
        pools: Mapping[Group, Pages],
        page: int,
        block: int,
        budget: int,
        most: int,
        patience: int = 1024,
        kept: int | None = None,
        packing: Collection[Group] = (),
        beside: int = 1,
    ) -> None:
        self.pools, self.page, self.block = pools, page, block
        self.budget, self.most, self.patience = budget, most, patience
        self.prefixes = Prefixes(pools, block, kept)
        self.packing, self.beside = packing, beside
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.passes = self.preempted = self.arrived = 0

    def rank(self, priority: int) -> tuple[int, int, int]:
        """The rank of a sequence that arrives now: a later one of higher priority overtakes it for a while only."""
        self.arrived += 1
        return (priority * self.patience + self.passes, self.arrived, 0)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        insort(self.waiting, sequence, key=lambda held: held.rank)

    def run(self, sequence: Sequence) -> None:
        """Let a sequence that holds pages run at once: a fork."""
        insort(self.running, sequence, key=lambda held: held.rank)

    def remove(self, sequence: Sequence) -> None:
        """End a sequence; its pages are free."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)

    def plan(self) -> Plan:
        """What to read now; pages for it are taken."""
        self.passes += 1
        plan, left = Plan(), self.budget
        for sequence in [held for held in self.running if not held.prefilling]:
            end = min(len(sequence.tokens) + len(sequence.drafts), sequence.computed + max(1, left))
            end = min(end, self._whole(sequence.computed) + self.block) if self.packing else end
            if sequence in self.running and self._reserve(sequence, end, plan):
                plan.rows.append((sequence, sequence.computed, end))
                left -= end - sequence.computed
        for sequence in list(self.running):
            if sequence in self.running and sequence.prefilling:
                left = self._prefill(sequence, left, plan, begun=True)
        while self.waiting and left > 0 and self._admit(sequence := self.waiting[0]):
            left = self._prefill(sequence, left, plan, begun=False)
        return plan

    def _prefill(self, sequence: Sequence, left: int, plan: Plan, begun: bool) -> int:
        """Plan blocks of its prompt while the budget lasts, one in any case where nothing else is read."""
        begin = sequence.computed
        while begin < sequence.n_prompt:
            end = min(begin + self.block, sequence.n_prompt)
            nothing = not (plan.rows or plan.blocks)
            held_up = bool(plan.rows) and begun and len(plan.blocks) >= self.beside
            if held_up or (end - begin > left and not nothing):
                break
            # nobody gives way for more than one block: it may be that pages come free once this one is packed
            took = self._take if begin > sequence.computed else self._reserve
            if not took(sequence, end, plan):
                break
            plan.blocks.append((sequence, begin, end))
            left -= end - begin
            begin, begun = end, True
        return left

    def _admit(self, sequence: Sequence) -> bool:
        """Begin a sequence if its prompt fits beside those running; what is kept of its beginning is its own now."""
        if self.running and len(self.running) + sequence.width > self.most:
            return False
        run = self.prefixes.match(sequence.keys[: (sequence.n_prompt - 1) // self.block], self.page)
        sequence.tables = {
            group: [page if page == GONE else pool.share(page) for block in run for page in block.pages[group]]
            for group, pool in self.pools.items()
        }
        sequence.computed = len(run) * self.block
        sequence.states = run[-1].states if run else None
        if self.running and not all(
            self._room(pool, self._need(sequence, group)) for group, pool in self.pools.items()
        ):
            self._release(sequence)
            return False
        self.waiting.pop(0)
        self.run(sequence)
        return True

    def _whole(self, tokens: int) -> int:
        """Tokens in the whole blocks of so many."""
        return tokens // self.block * self.block

    def _need(self, sequence: Sequence, group: Group) -> int:
        """Pages that what is left of its prompt holds at once."""
        tokens = sequence.n_prompt - sequence.computed
        if group in self.packing:
            tokens = tokens if group is None else min(tokens, group + 2 * self.block)
            return -(-tokens // (2 * self.page)) + self.block // self.page // 2 + 1
        return -(-(tokens if group is None else min(tokens, group + self.block)) // self.page) + 1

    def _room(self, pool: Pages, pages: int) -> bool:
        while pool.free < pages:
            if not self.prefixes.forget():
                return False
        return True

    def _reserve(self, sequence: Sequence, end: int, plan: Plan) -> bool:
        """Take pages for its tokens up to `end`; who is served last gives way, itself at the worst."""
        while not self._take(sequence, end, plan):
            last = self.running[-1]
            self._preempt(last, plan)
            if last is sequence:
                return False
        return True

    def _take(self, sequence: Sequence, end: int, plan: Plan) -> bool:
        """Take all pages that are lacking up to `end`, or none. Pages to be written that are shared are copied."""
        wanted = -(-end // self.page)
        shared: dict[Group, list[int]] = {}
        for group, pool in self.pools.items():
            table = sequence.tables.setdefault(group, [])
            shared[group] = self._shared(sequence, group)
            if not self._room(pool, max(0, wanted - len(table)) + len(shared[group])):
                return False
        for group, pool in self.pools.items():
            table = sequence.tables[group]
            for place in shared[group]:
                page = pool.take()
                plan.copies.append((group, table[place], page))
                pool.drop([table[place]])
                table[place] = page
            table.extend(pool.take() for _ in range(wanted - len(table)))
        return True

    def _shared(self, sequence: Sequence, group: Group) -> list[int]:
        """Places in a table of pages that it is about to write, and others own too.

        The one that is written first; of a block that will be packed all, so that it can be where it stands.
        """
        table, first = sequence.tables[group], sequence.computed // self.page
        begin = self._whole(sequence.computed) // self.page if group in self.packing else first
        owners = self.pools[group].owners
        return [
            place
            for place in range(begin, min(first + 1, len(table)))
            if table[place] != GONE and owners[table[place]] > 1
        ]

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """Send a sequence back to wait: it reads its tokens again."""
        self.preempted += 1
        plan.blocks = [work for work in plan.blocks if work[0] is not sequence]
        plan.rows = [work for work in plan.rows if work[0] is not sequence]
        self.running.remove(sequence)
        self._release(sequence)
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        for group, table in sequence.tables.items():
            self.pools[group].drop(table)
        sequence.tables, sequence.computed, sequence.states = {}, 0, None
        sequence.drafts, sequence.reading, sequence.recent = [], None, None

    def pack(self, sequence: Sequence, length: int) -> list[tuple[Group, list[int], list[int]]]:
        """Its first `length` tokens will be `done`: the blocks to be packed for that, from pages into half as many."""
        packs = []
        per = self.block // self.page
        for number in range(sequence.computed // self.block, length // self.block):
            for group in self.packing:
                table, pool = sequence.tables[group], self.pools[group]
                old = table[number * per : (number + 1) * per]
                new = old[: per // 2]
                packs.append((group, old, new))
                table[number * per : (number + 1) * per] = [page for page in new for _ in range(2)]
                pool.drop(old[per // 2 :])
                for page in new:
                    pool.share(page)
        return packs

    def done(self, sequence: Sequence, length: int) -> None:
        """Its first `length` tokens stand in the cache now; pages that no later token needs are free."""
        sequence.computed = length
        for group, table in sequence.tables.items():
            if group is not None:
                beyond = max(0, length - group + 1)
                lost = (self._whole(beyond) if group in self.packing else beyond) // self.page
                self.pools[group].drop(table[:lost])
                table[:lost] = [GONE] * min(lost, len(table))

    def trim(self, sequence: Sequence) -> None:
        """Free the pages beyond what was computed: of drafts that were wrong."""
        used = -(-sequence.computed // self.page)
        for group, table in sequence.tables.items():
            self.pools[group].drop(table[used:])
            del table[used:]

    def keep(self, sequence: Sequence, begin: int) -> None:
        """Keep what was computed of the prompt's block at `begin` for others that begin alike."""
        number, per = begin // self.block, self.block // self.page
        pages = {group: table[number * per : (number + 1) * per] for group, table in sequence.tables.items()}
        parent = sequence.keys[number - 1] if number else b""
        self.prefixes.keep(sequence.keys[number], parent, pages, sequence.states)

    def fork(self, sequence: Sequence, sample: int) -> Sequence:
        """Another sample that holds the same pages, and runs."""
        tables = {
            group: [page if page == GONE else self.pools[group].share(page) for page in table]
            for group, table in sequence.tables.items()
        }
        rank = (*sequence.rank[:2], sample)
        made = Sequence(sequence.request, sample, list(sequence.tokens), sequence.n_prompt, rank, sequence.computed)
        made.tables, made.states, made.keys = tables, sequence.states, sequence.keys
        self.run(made)
        return made
