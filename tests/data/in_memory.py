"""Near duplicates found with everything in memory: the plain way, which the one on disk is held against."""

from __future__ import annotations

import numpy as np

from nachim.data.minhash import BANDS, NOTHING, agreement, band_keys, jaccard, signatures
from nachim.data.near import MARGIN
from nachim.data.shingle import shingles


class Plain:
    """Who goes for whom among `texts`: `keeper`, `similarity` and `crowded`, the texts that met a crowd.

    `preferred` are the numbers of all texts, those that are to stay first.
    """

    def __init__(self, texts, preferred, threshold, crowd):
        self.texts, self.threshold, self.crowd = texts, threshold, crowd
        self.found, self.shingles = signatures(texts), [shingles(text) for text in texts]
        self.rank = {one: place for place, one in enumerate(preferred)}
        first = {}
        for one in preferred:
            first.setdefault(texts[one], one)
        self.keeper = [first[text] for text in texts]
        self.given = [one for one in range(len(texts)) if self.keeper[one] != one]
        self.similarity, self.crowded = [1.0] * len(texts), set()
        self.worded = [one for one in range(len(texts)) if self.found[one, 0] != NOTHING]
        for band in range(BANDS):
            for members in self.buckets(band, [one for one in self.worded if self.keeper[one] == one]):
                keepers = []
                for one in members:
                    if not self.remove(one, keepers):
                        keepers.append(one)
        self.settle()

    def buckets(self, band, among):
        keys = band_keys(self.found, band).tolist()
        by_key = {}
        for one in sorted(among, key=self.rank.get):
            by_key.setdefault(keys[one], []).append(one)
        return [by_key[key] for key in sorted(by_key)]

    def jaccard(self, one, other):
        return jaccard(self.shingles[one], self.shingles[other])

    def remove(self, one, keepers):
        if len(keepers) > self.crowd:
            self.crowded.add(one)
        keepers = np.array(keepers[: self.crowd], dtype=np.int64)
        estimate = agreement(self.found, one, keepers)
        likely = np.flatnonzero(estimate >= self.threshold - MARGIN)
        for place in likely[np.argsort(-estimate[likely], kind="stable")]:
            similarity = self.jaccard(keepers[place], one)
            if similarity >= self.threshold:
                self.keeper[one], self.similarity[one] = int(keepers[place]), similarity
                return True
        return False

    def settle(self):
        lost = [one for one, of in enumerate(self.keeper) if self.keeper[of] != of and one not in set(self.given)]
        orphans = [one for one in sorted(lost, key=self.rank.get) if not self.inherited(one)]
        self.orphans = len(orphans)
        undecided = set(orphans)
        for one in orphans:
            self.keeper[one], self.similarity[one] = one, 1.0
        for one in orphans:
            agree = [some for band in range(BANDS) for some in self.buckets(band, self.worded) if one in some]
            near = {other for some in agree for other in some} - {one}
            near = [other for other in near if self.keeper[other] == other and other not in undecided]
            self.remove(one, sorted(near, key=self.rank.get))
            undecided.discard(one)
        for one in self.given:
            same = self.keeper[one]
            self.keeper[one], self.similarity[one] = self.keeper[same], self.similarity[same]

    def inherited(self, one):
        last = one
        while self.keeper[last] != last:
            last = self.keeper[last]
        similarity = self.jaccard(last, one)
        if similarity >= self.threshold:
            self.keeper[one], self.similarity[one] = last, similarity
        return similarity >= self.threshold
