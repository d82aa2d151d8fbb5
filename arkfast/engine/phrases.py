"""Phrases whose ids are given a bonus while they are produced: hotwords, as shallow fusion with a prefix trie does it.

A row's state is the longest end of its ids with which a phrase begins. Each id of a phrase adds the phrase's weight to its score; where
the phrase is abandoned, what its begin was given is taken back, so that only whole phrases keep their bonus (Aho and Corasick 1975 for the
states; Zhao et al. 2019, "Shallow-fusion end-to-end contextual biasing", for the bonus and its return). Scores alone are changed:
log-probabilities stay the model's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from arkfast.records import InputError


class _Node:
    """A state while the automaton is built."""

    def __init__(self, gain: float, *, ends: bool) -> None:
        self.gain, self.ends = gain, ends
        self.children: dict[int, _Node] = {}
        self.fail: _Node | None = None
        self.also = 0.0
        self.moves: dict[int, _Node] = {}
        self.number = 0


class Entries(NamedTuple):
    """What a state does with some ids; of ``moves`` each id leads to (next state, what the sum of bonuses gains before ``kept``)."""

    moves: Mapping[int, tuple[int, float]]
    returned: float
    """Bonus that the state's begun phrase was given, and that any next id takes back."""


class Phrases:
    """A set of phrases as an automaton, built once and used by any number of requests.

    Its states are numbered from 0, the state of a row in which no phrase has begun.

    Args:
        phrases: ids of each phrase, and the weight that each of them adds to its score. Of phrases that begin alike, or that stand there
            twice, the larger weight counts for the shared ids.

    Raises:
        InputError: no phrase, an empty one, a negative id, or a weight that is not above 0 and finite.

    Attributes:
        states: what each state does.
        highest: the highest id of any phrase.
    """

    def __init__(self, phrases: Iterable[tuple[tuple[int, ...], float]]) -> None:
        given = list(phrases)
        if not given:
            raise InputError("hotwords: there is no phrase; give at least one, or none of the flag")
        for ids, weight in given:
            if not ids or min(ids) < 0:
                raise InputError(f"hotwords: a phrase needs at least one id, none of them negative; got {list(ids)}")
            if not 0 < weight <= 1e4:
                raise InputError(f"hotwords: a weight must be above 0 and at most 10,000, got {weight}")
        self.highest = max(max(ids) for ids, _ in given)
        self.states = _numbered(_trie(given))


def _trie(phrases: list[tuple[tuple[int, ...], float]]) -> _Node:
    root = _Node(0.0, ends=False)
    weights: dict[tuple[int, ...], float] = {}  # of each begin of a phrase, for its last id
    for ids, weight in phrases:
        for length in range(1, len(ids) + 1):
            weights[ids[:length]] = max(weights.get(ids[:length], 0.0), weight)
    ends = {ids for ids, _ in phrases}
    nodes: dict[tuple[int, ...], _Node] = {(): root}
    for begin in sorted(weights, key=len):
        parent = nodes[begin[:-1]]
        # what an end has is kept, so the bonus that may have to be returned begins anew behind it
        node = _Node((0.0 if parent.ends else parent.gain) + weights[begin], ends=begin in ends)
        parent.children[begin[-1]] = nodes[begin] = node
    return root


def _numbered(root: _Node) -> list[Entries]:
    """The states in an order in which each state's fallback stands before it."""
    order, queue = [root], deque([root])
    while queue:
        node = queue.popleft()
        for token, child in node.children.items():
            fallback = node.fail
            while fallback is not None and token not in fallback.children:
                fallback = fallback.fail
            child.fail = root if fallback is None else fallback.children[token]
            # a phrase that ends here within a longer one has been said too
            child.also = child.fail.also + (child.fail.gain if child.fail.ends else 0.0)
            child.number = len(order)
            order.append(child)
            queue.append(child)
    for node in order:
        inherited = node.fail.moves if node.fail is not None and node.fail is not root else {}
        node.moves = {**inherited, **node.children}
    return [
        Entries(
            {token: (child.number, child.gain + child.also) for token, child in node.moves.items()},
            0.0 if node.ends else node.gain,
        )
        for node in order
    ]


@dataclass(frozen=True)
class PhraseTables:
    """The automata of several sets of phrases on the device, as one. State 0 is that of rows without phrases.

    Two lists of moves hold for a state: its own, and behind it that of the first state of its set, where any id begins a phrase.
    """

    start: torch.Tensor
    """[S] int64 where each state's moves stand."""
    last: torch.Tensor
    """[S] int64 where the last of them stands; there is always one."""
    root: torch.Tensor
    """[S] int64 the first state of the state's set."""
    returned: torch.Tensor
    """[S] float32 ``Entries.returned``."""
    keys: torch.Tensor
    """[E] int64 state · 2³² + id, ascending, so that a move is found by bisection."""
    following: torch.Tensor
    """[E] int64 the next state."""
    gain: torch.Tensor
    """[E] float32."""
    own: torch.Tensor
    """[C] int64 0, 1 … : as many as the most moves of a state that is not the first of its set."""
    first: torch.Tensor
    """[D] int64 the same of first states."""

    def add(self, scores: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Scores with each row's bonuses, float32 [R, W], for rows that are drawn.

        Args:
            scores: [R, W] of the model; ids of phrases are below W.
            states: [R] int64.
        """
        given = scores.float()
        returned = self.returned[states]
        found = given - returned[:, None]
        for owner, width in ((self.root[states], self.first), (states, self.own)):  # a state's own moves stand over those of the first
            place = self._places(owner, width)
            ids = self.keys[place] & 0xFFFFFFFF
            found.scatter_(1, ids, given.gather(1, ids) + (self.gain[place] - returned[:, None]))
        return found

    def best(
        self, scores: torch.Tensor, token: torch.Tensor, states: torch.Tensor, usable: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The id of the best score in each row with its bonuses, the lowest on a tie, without a pass over the scores.

        Any move gains something, and all other ids of a row lose the same. So no id passes the row's best one but by a move, and a few
        candidates decide.

        Args:
            scores: [R, W] of the model; ids of phrases are below W.
            token: [R] int64 the best id of each row before bonuses.
            states: [R] int64.
            usable: which of the ids [R, K] int64 may be produced, as [R, K] bool.

        Returns:
            [R] int64.
        """
        root = self.root[states]
        lists = [self.keys[self._places(owner, width)] & 0xFFFFFFFF for owner, width in ((root, self.first), (states, self.own))]
        ids = torch.cat([*lists, token[:, None]], 1)
        gain, returned = torch.zeros(ids.shape, device=ids.device), self.returned[states]
        for owner in (root, states):
            place, found = self._find(owner[:, None], ids)
            gain = torch.where(found, self.gain[place], gain)
        values = scores.gather(1, ids).float() + (gain - returned[:, None])
        values = values.masked_fill(~usable(ids), float("-inf"))
        return ids.masked_fill(values < values.amax(1, keepdim=True), scores.shape[1] - 1).amin(1)

    def next(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[R] int64 the states after ``tokens`` [R] int64."""
        root = self.root[states]
        following = root
        for owner in (root, states):
            place, found = self._find(owner, tokens)
            following = torch.where(found, self.following[place], following)
        return following

    def _places(self, owner: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """[R, len(width)] where the moves of the states ``owner`` [R] stand. Past a list's end stands its last move again, which changes
        nothing and keeps every shape."""
        return torch.minimum(self.start[owner][:, None] + width, self.last[owner][:, None])

    def _find(self, owner: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the moves of the states ``owner`` with ``ids`` stand, and whether there are such moves."""
        wanted = (owner << 32) + ids
        place = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        return place, self.keys[place] == wanted


class PhraseSets:
    """The sets of phrases of the rows that are being decoded.

    Tables have room to spare, so that a further set of phrases leaves them where they are, as captured steps need it.

    Args:
        device: where the tables lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: dict[Phrases, int] = {}
        self.tables: PhraseTables | None = None
        """None until a row has phrases."""

    def place(self, phrases: Phrases | None) -> int:
        """The state in which a row with these phrases begins."""
        return 0 if phrases is None else self._places[phrases]

    def hold(self, wanted: Iterable[Phrases], used: Iterable[Phrases | None]) -> bool:
        """Make room for further sets.

        Args:
            wanted: sets of rows that come.
            used: sets of the rows that there are; others may go.

        Returns:
            Whether the tables lie elsewhere now. The states of sets that there were may have moved all the same (``place``).
        """
        missing = [phrases for phrases in dict.fromkeys(wanted) if phrases not in self._places]
        if not missing:
            return False
        sets = [*self._places, *missing]
        fresh = _tables(sets)
        if self.tables is not None and not _fits(fresh, self.tables):
            sets = list(dict.fromkeys([*(phrases for phrases in used if phrases is not None), *missing]))
            fresh = _tables(sets)
        self._places = _places(sets)
        moved = self.tables is None or not _fits(fresh, self.tables)
        if moved:
            self.tables = PhraseTables(*(_with_room(name, value).to(self._device) for name, value in fresh._asdict().items()))
        else:
            assert self.tables is not None
            for name, value in fresh._asdict().items():
                room = getattr(self.tables, name)
                if name in ("own", "first"):
                    continue
                room[: len(value)].copy_(value.to(self._device, non_blocking=True))
                if name == "keys":
                    room[len(value) :] = _PAST
        return moved


_PAST = (1 << 63) - 1  # a key behind all others


class _Fresh(NamedTuple):
    """``PhraseTables`` without room to spare, on the host."""

    start: torch.Tensor
    last: torch.Tensor
    root: torch.Tensor
    returned: torch.Tensor
    keys: torch.Tensor
    following: torch.Tensor
    gain: torch.Tensor
    own: torch.Tensor
    first: torch.Tensor


def _places(sets: Iterable[Phrases]) -> dict[Phrases, int]:
    places, at = {}, 1
    for phrases in sets:
        places[phrases] = at
        at += len(phrases.states)
    return places


def _tables(sets: Iterable[Phrases]) -> _Fresh:
    start, last, root, returned = [0], [0], [0], [0.0]
    keys, following, gain = [0], [0], [0.0]  # rows without phrases: id 0 keeps its score and begins nothing
    widths = {False: 1, True: 1}
    for phrases, place in _places(sets).items():
        for number, state in enumerate(phrases.states):
            # a state without moves of its own repeats one of the first state, so that no list is empty
            moves = state.moves or dict([next(iter(phrases.states[0].moves.items()))])
            widths[number == 0] = max(widths[number == 0], len(moves))
            start.append(len(keys))
            for token in sorted(moves):
                target, worth = moves[token]
                keys.append(((place + number) << 32) + token)
                following.append(place + target)
                gain.append(worth)
            last.append(len(keys) - 1)
            root.append(place)
            returned.append(state.returned)
    whole = {"start": start, "last": last, "root": root, "keys": keys, "following": following}
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in whole.items()}
    reals = {name: torch.tensor(values, dtype=torch.float32) for name, values in {"returned": returned, "gain": gain}.items()}
    return _Fresh(**tensors, **reals, own=torch.arange(widths[False]), first=torch.arange(widths[True]))


def _fits(fresh: _Fresh, tables: PhraseTables) -> bool:
    return all(len(value) <= len(getattr(tables, name)) for name, value in fresh._asdict().items())


def _with_room(name: str, value: torch.Tensor) -> torch.Tensor:
    """The table with room for as much again."""
    if name in ("own", "first"):
        return torch.arange(2 * len(value))
    room = torch.full((2 * len(value),), _PAST if name == "keys" else 0, dtype=value.dtype)
    room[: len(value)] = value
    return room
