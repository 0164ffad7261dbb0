"""From a trace to what is drawn: a graph of a few boxes, in which chains are one box and what repeats stands once.

The whole net is taken apart down to its blocks: a module is a block unless it is a plain sequence, or most of its
convolutions lie in blocks with joins of their own that follow one another (then it is a stage of blocks), or it is a
long part that the net has once, such as a backbone.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from convatlas.atlas.operations import JOINS
from convatlas.atlas.trace import IMAGE, Operation, Trace

__all__ = ["Graph", "Node", "expanded_blocks", "inside", "whole_net"]

LONG = 10
"""Convolutions of a part that is taken apart where the net has it once."""
MOST_NODES, FEWEST_NODES = 48, 8
"""Boxes and joins of a drawing of a whole net, about."""
LARGEST = 140
"""Operations of a block that is drawn down to every one of them."""
LONGEST_PERIOD = 40
FEW, MOST_UNITS = 16, 3
"""Operations of a block of which several are drawn in a row, and how many."""
SHORT = 8
"""Lines of a box up to which a chain that repeats is written out."""
CONTINUING = frozenset({"norm", "activation", "scale", "shuffle", "pad"})
"""Operations that stand in the line of the one before them."""
WEIGHTY = frozenset({"conv", "linear", "recurrent"})
"""Operations that may have weights."""


@dataclass(frozen=True)
class Node:
    """A box or a join of a drawing.

    Attributes:
        kind: chain, block, join, split, boxes (what a detector does with boxes), or input.
        title: first line of a block or an input; "" for others.
        lines: the others, with how often each follows itself.
        start, end: its operations in the trace; empty for an input.
        unit_end: the end of the first of `repeats` equal parts.
        inputs: the nodes whose results it takes.
        shape: of its result.
        call: the first call that it stands for, None for loose operations.
        repeats: number of equal parts, each of which takes the result of the one before.
        shared: the equal parts have the same weights; they need not follow one another then.
        chain: what a chain is made of: beginning and end of a sequence of operations, and how often it stands there.
    """

    kind: str
    title: str
    lines: tuple[tuple[str, int], ...]
    start: int
    end: int
    unit_end: int
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    call: int | None = None
    repeats: int = 1
    shared: bool = False
    chain: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of execution; each takes results of earlier ones alone."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Part:
    """Operations `start` to `end`, those of one call or a single loose one."""

    start: int
    end: int
    call: int | None


def whole_net(trace: Trace) -> Graph:
    """Return the whole net, down to its blocks; where that is too much, stages are blocks."""
    classes = _Classes(trace)
    nodes = _nodes(trace, _parts(trace, 0, classes))
    while len(nodes) > MOST_NODES and classes.stages:
        coarser = [(_nodes(trace, _parts(trace, 0, classes.without(kind))), kind) for kind in sorted(classes.stages)]
        nodes, kind = min(coarser, key=lambda found: (len(found[0]) < FEWEST_NODES, len(found[0])))
        classes = classes.without(kind)
    return Graph(nodes)


def inside(trace: Trace, node: Node) -> Graph:
    """Return one block, or what a node repeats, down to its operations; down to the blocks in it where it is large.

    Where equal blocks take more than the result of the one before, as many are drawn as it takes to see it.
    """
    if node.call is not None and node.unit_end - node.start > LARGEST:
        return Graph(_nodes(trace, _parts(trace, node.call, _Classes(trace, within=node.call))))
    end = node.start + units_drawn(trace, node) * (node.unit_end - node.start)
    parts = [_Part(place, place + 1, None) for place in range(node.start, end)]
    nodes = _nodes(trace, parts, chains_only=True)
    return Graph(nodes if units_drawn(trace, node) == MOST_UNITS else _with_outputs(trace, nodes, end))


def _with_outputs(trace: Trace, nodes: tuple[Node, ...], end: int) -> tuple[Node, ...]:
    """Put a node behind each whose result is taken from `end` on, if there are several."""
    leaving = [
        number
        for number, node in enumerate(nodes)
        if any(taker >= end for place in range(node.start, node.end) for taker in trace.takers[place])
    ]
    outputs = [Node("input", "output", (), 0, 0, 0, (number,), nodes[number].shape) for number in leaving]
    return (*nodes, *outputs) if len(outputs) > 1 else nodes


def units_drawn(trace: Trace, node: Node) -> int:
    """Return how many of a node's equal blocks are drawn: the first ones, as far as they take what the first takes."""
    length = node.unit_end - node.start
    if node.call is None or length > FEW:
        return 1
    for unit in range(1, min(node.repeats, MOST_UNITS)):
        start = node.start + unit * length
        sources = {source for each in trace.operations[start : start + length] for source in each.inputs}
        if not any(source < node.start and len(_shape(trace, source)) == 3 for source in sources):
            return unit
    return min(node.repeats, MOST_UNITS)


def expanded_blocks(trace: Trace, graph: Graph, limit: int = 6) -> list[tuple[Node, Graph]]:
    """Return the kinds of blocks of a graph in the order of the net, of many the largest, each with what is inside.

    `repeats` of a block is the number of its equal ones that are drawn.
    """
    kinds: dict[tuple, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.kind == "block":
            kinds[(node.title, _form(trace, node))].append(node)
    ranked = sorted(kinds.values(), key=lambda nodes: -sum(node.end - node.start for node in nodes))
    chosen = [max(nodes, key=lambda node: node.repeats) for nodes in ranked[:limit]]
    drawn = [
        (replace(node, repeats=units_drawn(trace, node)), inside(trace, node))
        for node in sorted(chosen, key=lambda node: node.start)
    ]
    return [(node, within) for node, within in drawn if len(within.nodes) > 2]


def _form(trace: Trace, node: Node) -> tuple:
    """Return what two blocks share that are drawn alike but for their numbers."""
    unit = enumerate(trace.operations[node.start : node.unit_end], node.start)
    return tuple((o.kind, tuple(place - source for source in o.inputs if source >= node.start)) for place, o in unit)


# ---- taking apart ---------------------------------------------------------------------------------------------------


class _Classes:
    """Which classes of modules are taken apart rather than drawn as a block."""

    def __init__(self, trace: Trace, within: int = 0) -> None:
        self.trace = trace
        calls = trace.calls
        self.convs = [sum(o.kind == "conv" for o in trace.operations[c.start : c.end]) for c in calls]
        self.joins = [sum(o.kind in JOINS for o in trace.operations[c.start : c.end]) for c in calls]
        places: dict[str, list[int]] = defaultdict(list)
        for place, call in enumerate(calls):
            if calls[within].start <= call.start and call.end <= calls[within].end:
                places[call.kind].append(place)
        self.stages = {kind for kind, found in places.items() if self._is_stage(found)}

    def without(self, kind: str) -> _Classes:
        """Return the same with one class less."""
        fewer = copy.copy(self)
        fewer.stages = self.stages - {kind}
        return fewer

    def _is_stage(self, places: Sequence[int]) -> bool:
        blocks = [self._blocks(place) for place in places]
        inner = sum(self.convs[block] for found in blocks for block in found)
        pairs = [pair for found in blocks for pair in pairwise(found)]
        whole = sum(self.convs[place] for place in places)
        if len(places) == 1 and whole > LONG and (inner or not self.joins[places[0]]):
            return True
        follow = sum(self._follows(*pair) for pair in pairs)
        return bool(pairs) and inner >= 0.5 * whole and follow >= 0.6 * len(pairs)

    def _blocks(self, place: int) -> list[int]:
        """Return the outermost calls inside that have convolutions and joins, and are no plain sequences."""
        found: list[int] = []
        for child in self.trace.calls[place].children:
            is_block = self.convs[child] and self.joins[child] and not self.is_sequence(child)
            found += [child] if is_block else self._blocks(child)
        return found

    def _follows(self, first: int, second: int) -> bool:
        one, other = self.trace.calls[first], self.trace.calls[second]
        sources = {source for o in self.trace.operations[other.start : other.end] for source in o.inputs}
        return any(one.start <= source < one.end for source in sources)

    def is_sequence(self, place: int) -> bool:
        """Say whether a call is one of a container that only calls what it holds, one after the other."""
        module = self.trace.calls[place].module
        return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward

    def taken_apart(self, place: int) -> bool:
        call = self.trace.calls[place]
        return self.is_sequence(place) or call.kind in self.stages or not call.children or self._is_light(place)

    def _is_light(self, place: int) -> bool:
        """Say whether a call is a single convolution with what follows it, or less."""
        call = self.trace.calls[place]
        kinds = [operation.kind for operation in self.trace.operations[call.start : call.end]]
        return sum(kind in WEIGHTY for kind in kinds) == self.convs[place] <= 1 and not {*JOINS, "split"} & set(kinds)


def _parts(trace: Trace, place: int, classes: _Classes) -> list[_Part]:
    """Take a call apart into blocks and loose operations, in the order of execution."""
    call = trace.calls[place]
    parts: list[_Part] = []
    at = call.start
    for child in call.children:
        inner = trace.calls[child]
        parts += [_Part(loose, loose + 1, None) for loose in range(at, inner.start)]
        if classes.taken_apart(child):
            parts += _parts(trace, child, classes)
        elif inner.end > inner.start:
            is_one = inner.end == inner.start + 1
            parts.append(_Part(inner.start, inner.end, None if is_one else child))
        at = inner.end
    return parts + [_Part(loose, loose + 1, None) for loose in range(at, call.end)]


# ---- putting together -----------------------------------------------------------------------------------------------


def _nodes(trace: Trace, parts: Sequence[_Part], *, chains_only: bool = False) -> tuple[Node, ...]:
    """Make the nodes of a graph; of what repeats, chains alone stand once where `chains_only` says so."""
    boxes = _chained(trace, _with_inputs(trace, _runs(trace, parts, chains_only)))
    return tuple(replace(box, lines=_lines(trace, box.chain)) if box.chain else box for box in boxes)


def _runs(trace: Trace, parts: Sequence[_Part], chains_only: bool) -> list[Node]:
    """Make a node of every part, and a single one of parts that repeat; inputs are filled in later."""
    labels = [_label(trace, part) for part in parts]
    nodes: list[Node] = []
    at = 0
    while at < len(parts):
        period, repeats, shared = _repetition(trace, parts, labels, at, chains_only)
        unit, last = parts[at : at + period], parts[at + period * repeats - 1]
        node = replace(_node(trace, unit), end=last.end, shape=trace.operations[last.end - 1].shape)
        if node.kind == "chain":
            node = replace(node, chain=((node.start, node.unit_end, repeats),), shared=shared)
        nodes.append(replace(node, repeats=repeats, shared=shared))
        at += period * repeats
    return nodes


def _label(trace: Trace, part: _Part) -> tuple:
    """Return what two parts have to share to be equal: what they compute, and how it hangs together."""
    operations = enumerate(trace.operations[part.start : part.end], part.start)
    return tuple(
        (
            o.kind if o.kind in JOINS else o.text,
            tuple(sorted({place - source for source in o.inputs if source >= part.start})),
        )
        for place, o in operations
    )


def _repetition(
    trace: Trace, parts: Sequence[_Part], labels: Sequence[tuple], at: int, chains_only: bool
) -> tuple[int, int, bool]:
    """Return how many parts from `at` on repeat, how often, and whether with the same weights."""
    best, shared = (1, 1), False
    if at and _continues(trace, parts[at - 1], parts[at]):
        return (*best, shared)
    for period in range(1, min(LONGEST_PERIOD, (len(parts) - at) // 2) + 1):
        repeats = 1
        while True:
            here = at + repeats * period
            if here + period > len(parts) or labels[here : here + period] != labels[at : at + period]:
                break
            if period == 1 and _is_join_used_twice(trace, parts[here - 1]):
                break
            same = _same_modules(trace, parts, at, here, period)
            if not same and _side(_result(trace, parts, here, period)) != _side(_result(trace, parts, at, period)):
                break
            if not (_hangs_on(trace, parts, here, period) or same) or not _same_inside(trace, parts, at, here, period):
                break
            repeats += 1
        if period * repeats <= best[0] * best[1] or (
            chains_only and period > 1 and not _is_chain(trace, parts[at : at + period])
        ):
            continue
        same = _same_modules(trace, parts, at, at + period, period)
        if _stands_once(trace, parts[at : at + period * repeats], period, same):
            kinds = {trace.operations[place].kind for place in range(parts[at].start, parts[at + period - 1].end)}
            best, shared = (period, repeats), same and bool(kinds & WEIGHTY)
    return (*best, shared)


def _stands_once(trace: Trace, parts: Sequence[_Part], period: int, shared: bool) -> bool:
    """Say whether a period that repeats is drawn once with its number."""
    repeats = len(parts) // period
    if not _is_chain(trace, parts[:period]):
        return repeats >= (2 if period == 1 else 3)
    start, end = parts[0].start, parts[-1].end
    if any(taker >= end for place in range(start, end - 1) for taker in trace.takers[place]):
        return False  # something branches off on the way
    lines = len(_lines(trace, [(start, parts[period - 1].end, 1)]))
    return repeats >= 2 and (shared or lines == 1 or lines * repeats > SHORT)


def _continues(trace: Trace, before: _Part, part: _Part) -> bool:
    """Say whether a part stands in the line of the one before it, where nothing that repeats should begin."""
    if before.call is not None or part.call is not None:
        return False
    kinds = trace.operations[before.start].kind, trace.operations[part.start].kind
    return kinds[0] not in {*JOINS, "split"} and kinds[1] in CONTINUING


def _is_join_used_twice(trace: Trace, part: _Part) -> bool:
    """Say whether a part is a join of which more than one operation takes the result."""
    if part.call is not None or trace.operations[part.start].kind not in JOINS:
        return False
    return len(trace.takers[part.start]) > 1


def _same_modules(trace: Trace, parts: Sequence[_Part], at: int, here: int, period: int) -> bool:
    """Say whether two periods are calls of the same modules, each called again."""

    def calls(first: int) -> list[int]:
        unit = parts[first : first + period]
        return [trace.operations[part.start].call if part.call is None else part.call for part in unit]

    one, other = calls(at), calls(here)
    names = [[trace.calls[place].name for place in found] for found in (one, other)]
    return names[0] == names[1] and not set(one) & set(other)


def _result(trace: Trace, parts: Sequence[_Part], first: int, period: int) -> tuple[int, ...]:
    return trace.operations[parts[first + period - 1].end - 1].shape


def _hangs_on(trace: Trace, parts: Sequence[_Part], here: int, period: int) -> bool:
    """Say whether the parts from `here` on take a result of those one period before."""
    first, middle, end = parts[here - period].start, parts[here].start, parts[here + period - 1].end
    return any(first <= source < middle for o in trace.operations[middle:end] for source in o.inputs)


def _same_inside(trace: Trace, parts: Sequence[_Part], at: int, here: int, period: int) -> bool:
    """Say whether two periods hang together inside in the same way."""

    def edges(first: int) -> list[tuple[int, ...]]:
        start, end = parts[first].start, parts[first + period - 1].end
        operations = enumerate(trace.operations[start:end], start)
        return [tuple(sorted(place - source for source in o.inputs if source >= start)) for place, o in operations]

    return edges(at) == edges(here)


def _is_chain(trace: Trace, parts: Sequence[_Part]) -> bool:
    """Say whether parts are loose operations of which each takes the result of the one before alone."""
    return all(part.call is None and trace.operations[part.start].kind not in {*JOINS, "split"} for part in parts) and (
        all(trace.operations[part.start].inputs == (part.start - 1,) for part in parts[1:])
    )


def _node(trace: Trace, unit: Sequence[_Part]) -> Node:
    start, end, call = unit[0].start, unit[-1].end, unit[0].call
    operations = trace.operations[start:end]
    bare = Node("chain", "", (), start, end, end, (), operations[-1].shape)
    if len(unit) == 1 and call is None and operations[0].kind in {*JOINS, "split"}:
        return replace(bare, kind="split" if operations[0].kind == "split" else "join")
    if _is_chain(trace, unit):
        return bare
    call = call if len(unit) == 1 else None
    title = words_of(trace.calls[_around(trace, start) if call is None else call].kind)
    return replace(bare, kind="block", title=title, lines=_summary(operations), call=call)


def _around(trace: Trace, operation: int) -> int:
    """Return the innermost call around an operation that is of no plain sequence and no single layer."""
    place = trace.operations[operation].call
    while place and (not trace.calls[place].children or isinstance(trace.calls[place].module, nn.Sequential)):
        place = trace.calls[place].parent
    return place


def words_of(name: str) -> str:
    """Write the name of a class as words: `InvertedResidual` as `inverted residual`; names of nets stay."""
    words = re.findall(r"[A-Z]\w*?Ne[xX]?t(?:V\d)?(?=[A-Z]|$)|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+", name)
    return " ".join(word if sum(map(str.isupper, word)) > 1 else word.lower() for word in words)


def _lines(trace: Trace, chain: Iterable[tuple[int, int, int]]) -> tuple[tuple[str, int], ...]:
    """Write a chain as lines: a convolution with its normalisation and activation is one."""
    lines: list[tuple[str, int]] = []
    for start, end, repeats in chain:
        texts: list[str] = []
        for operation in trace.operations[start:end]:
            if operation.kind in CONTINUING and (texts or (repeats == 1 and lines and lines[-1][1] == 1)):
                text = texts.pop() if texts else lines.pop()[0]
                texts.append(f"{text} · {operation.text}")
            else:
                texts.append(operation.text)
        lines += [(text, repeats if len(texts) == 1 else 1) for text in texts]
    return _counted(lines)


def _summary(operations: Sequence[Operation]) -> tuple[tuple[str, int], ...]:
    """Write the convolutions and linear layers of a block; of many, how many there are."""
    lines = _counted((operation.text, 1) for operation in operations if operation.kind in {"conv", "linear"})
    if len(lines) <= 5:
        return lines
    kinds = Counter(operation.kind for operation in operations)
    return ((f"{kinds['conv']} convolutions" if kinds["conv"] else f"{kinds['linear']} matrix products", 1),)


def _counted(lines: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Let equal lines that follow one another stand once."""
    found: list[tuple[str, int]] = []
    for text, number in lines:
        if found and found[-1][0] == text:
            found[-1] = (text, found[-1][1] + number)
        else:
            found.append((text, number))
    return tuple(found)


def _with_inputs(trace: Trace, nodes: Sequence[Node]) -> list[Node]:
    """Put a node before all others for each result from outside, and fill in which node takes whose results."""
    at: dict[int, int] = {}
    outside: dict[int, int] = {}
    first = nodes[0].start if nodes else 0
    sources = [sorted({s for o in trace.operations[node.start : node.end] for s in o.inputs}) for node in nodes]
    for source in dict.fromkeys(s for found in sources for s in found if s < first):
        outside[source] = len(outside)
    for number, node in enumerate(nodes, len(outside)):
        at |= dict.fromkeys(range(node.start, node.end), number)
    inputs = [_input(trace, source) for source in outside]
    for number, (node, found) in enumerate(zip(nodes, sources, strict=True), len(outside)):
        taken = [outside[s] if s < first else at[s] for s in found if s < first or at[s] != number]
        inputs.append(replace(node, inputs=tuple(dict.fromkeys(taken))))
    return inputs


def _input(trace: Trace, source: int) -> Node:
    if source != IMAGE and (seen := trace.operations[source].field) is not None and not seen.height:
        return Node("input", "weights", (), 0, 0, 0, (), ())
    return Node("input", "image" if source == IMAGE else "input", (), 0, 0, 0, (), _shape(trace, source))


def _shape(trace: Trace, source: int) -> tuple[int, ...]:
    return trace.image if source == IMAGE else trace.operations[source].shape


def _chained(trace: Trace, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Make one box of chains that follow one another, as long as the size of the map stays the same."""
    takers: dict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        for source in node.inputs:
            takers[source].append(number)
    box_of: dict[int, int] = {}
    boxes: list[Node] = []
    for number, node in enumerate(nodes):
        before = node.inputs[0] if len(node.inputs) == 1 else None
        if before is not None and takers[before] == [number] and _joinable(trace, boxes[box_of[before]], node):
            place = box_of[before]
            if place == len(boxes) - 1:  # what a box stands for is one piece of the trace
                boxes[place] = _stacked(boxes[place], node)
                box_of[number] = place
                continue
        box_of[number] = len(boxes)
        boxes.append(replace(node, inputs=tuple(dict.fromkeys(box_of[source] for source in node.inputs))))
    return tuple(boxes)


def _joinable(trace: Trace, first: Node, second: Node) -> bool:
    chains = first.kind == second.kind == "chain" and not (_stands_alone(trace, first) or _stands_alone(trace, second))
    light = all(operation.kind in CONTINUING for operation in trace.operations[first.start : first.end])
    return chains and (light or _side(first.shape) == _side(second.shape))


def _stands_alone(trace: Trace, node: Node) -> bool:
    """Say whether a chain repeats something that does not fit into a line."""
    start, end, repeats = node.chain[0]
    return node.shared or (repeats > 1 and len(_lines(trace, [(start, end, 1)])) > 1)


def _side(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return height and width; nothing for a vector and for a map of one pixel."""
    return () if shape[1:] == (1, 1) else shape[1:]


def _stacked(first: Node, second: Node) -> Node:
    return replace(first, chain=first.chain + second.chain, end=second.end, unit_end=second.end, repeats=1,
                   shape=second.shape)  # fmt: skip
