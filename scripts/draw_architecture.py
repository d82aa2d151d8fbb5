"""Draws ``docs/architecture.svg``: arkfast's folders in their layers, and what each imports, read from the sources.

Usage: python scripts/draw_architecture.py [--root CHECKOUT] [--output FILE]

An arrow stands for an import. Where a path over other arrows says the same, the arrow is left out of the drawing and the import is named in
the box. The same sources give the same bytes: a test draws the picture anew and compares.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from import_graph import LAYERS, package_imports

BOX, GAP, BETWEEN, MARGIN, LEFT, RIGHT = 176, 18, 46, 16, 76, 112
"""In SVG's units: a box's width, the least room beside it, the room between two layers, the picture's edge, the columns of labels."""
LINE, TITLE = 14, 19
LETTER = 5.9  # the mean width of a letter at 11 units, a little more than system fonts have
STYLE = """
  :root { --ink: #1d2327; --faint: #5d6870; --card: #ffffff; --band: #f2f4f6; --edge: #9aa5ad;
    --s0: #0072b2; --s1: #c04a00; --s2: #00795a; --s3: #a0448a; --s4: #8a6100; --s5: #4b5563; --s6: #b42318; --s7: #00697a; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e8ebed; --faint: #a0abb3; --card: #1c2226; --band: #14181b; --edge: #59656e;
      --s0: #56b4e9; --s1: #ff8a4c; --s2: #34c79a; --s3: #e290cb; --s4: #e6b422; --s5: #9aa7b4; --s6: #ff8f82; --s7: #4fd1e0; } }
  text { font: 11px system-ui, sans-serif; fill: var(--faint); }
  .name { font-size: 13px; font-weight: 600; fill: var(--ink); }
  .folders { fill: var(--ink); }
  .layer { fill: var(--band); }
  .box { fill: var(--card); stroke: var(--edge); }
  .arrow { fill: none; stroke-width: 1.5; }
"""
TONES = 8
# All arrows to one box have one colour, and boxes beside each other have different ones.
TONE_OF = {name: i % TONES for i, name in enumerate(name for names, _ in LAYERS for name in sorted(names))}


@dataclass(eq=False)
class Node:
    """A box, or a place where a long arrow crosses a layer between its ends."""

    layer: int
    name: str = ""
    """Empty where an arrow crosses."""
    target: str = ""
    """Where such an arrow leads; arrows that lead to one box are one line from where they meet."""
    folders: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    below: list[Node] = field(default_factory=list)
    above: list[Node] = field(default_factory=list)
    x: float = 0.0
    """Of the middle."""

    @property
    def width(self) -> float:
        return BOX if self.name else 4.0

    def lines(self) -> list[tuple[str, str]]:
        """(CSS class, text) below the name."""
        found = [("folders", line) for line in wrapped(f"{name}/" for name in self.folders)]
        return found + [("", line) for line in wrapped(self.says().split())]

    def says(self) -> str:
        return f"imports {', '.join(self.imports) or 'nothing of arkfast'}"

    def height(self) -> float:
        return TITLE + LINE * len(self.lines()) + 12


def wrapped(words: Iterable[str]) -> list[str]:
    """Words with blanks between them in lines that fit into a box."""
    lines: list[str] = []
    for word in words:
        if lines and len(f"{lines[-1]} {word}") * LETTER <= BOX - 20:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def folders_of(root: Path, name: str) -> list[str]:
    """The packages inside a package."""
    return sorted(path.parent.name for path in (root / "arkfast" / name).glob("*/__init__.py"))


def nodes_of(root: Path) -> list[list[Node]]:
    """The layers from the lowest up; boxes are joined by arrows that no others imply, and every arrow leads from a layer to the next."""
    imports = package_imports(root)
    rank = {name: depth for depth, (names, _) in enumerate(LAYERS) for name in names}
    if strangers := sorted(imports.keys() - rank.keys()):
        sys.exit(f"arkfast.{strangers[0]} has no layer; add it to the table in scripts/import_graph.py")
    if upward := sorted((name, target) for name in imports for target in imports[name] if rank[target] >= rank[name]):
        sys.exit(f"arkfast.{upward[0][0]} imports arkfast.{upward[0][1]}, which is not below it; see tests/test_repo_shape.py")
    reached = {name: set(targets) for name, targets in imports.items()}
    for name in sorted(imports, key=rank.__getitem__):
        reached[name] = imports[name].union(*(reached.get(target, set()) for target in imports[name]))
    drawn = sorted(imports.keys() | {target for targets in imports.values() for target in targets})
    boxes = {
        name: Node(
            rank[name],
            name,
            folders=folders_of(root, name),
            imports=sorted(imports.get(name, ()), key=lambda target: (-rank[target], target)),
        )
        for name in drawn
    }
    layers: list[list[Node]] = [[] for _ in LAYERS]
    for name in drawn:
        layers[rank[name]].append(boxes[name])
    trunks: dict[tuple[str, int], Node] = {}
    for name in drawn:
        targets = imports.get(name, set())
        for target in sorted(targets):
            if any(target in reached.get(other, ()) for other in targets):
                continue
            upper = boxes[name]
            for depth in range(rank[name] - 1, rank[target], -1):
                if fresh := (target, depth) not in trunks:
                    trunks[target, depth] = Node(depth, target=target)
                    layers[depth].append(trunks[target, depth])
                join(upper, trunks[target, depth])
                upper = trunks[target, depth]
                if not fresh:
                    break
            else:
                join(upper, boxes[target])
    return layers


def join(upper: Node, lower: Node) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def crossings(layers: list[list[Node]]) -> int:
    """How often arrows cross between neighbouring layers."""
    count = 0
    for lower, upper in itertools.pairwise(layers):
        place = {id(node): i for i, node in enumerate(lower)}
        ends = [(i, place[id(target)]) for i, node in enumerate(upper) for target in node.below]
        count += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(ends) for b in ends[:i])
    return count


def order(layers: list[list[Node]]) -> None:
    """Sorts each layer by the mean place of its neighbours, down and up in turn, and keeps the order with the fewest crossings."""
    best, fewest = [list(layer) for layer in layers], crossings(layers)
    for sweep in range(24):
        down = sweep % 2 == 0
        for i in range(len(layers) - 2, -1, -1) if down else range(1, len(layers)):
            fixed = layers[i + 1] if down else layers[i - 1]
            place = {id(node): j / max(len(fixed) - 1, 1) for j, node in enumerate(fixed)}
            here = {id(node): j / max(len(layers[i]) - 1, 1) for j, node in enumerate(layers[i])}

            def mean(node: Node, down: bool = down, place: dict[int, float] = place, here: dict[int, float] = here) -> float:
                near = node.above if down else node.below
                return sum(place[id(other)] for other in near) / len(near) if near else here[id(node)]

            layers[i].sort(key=mean)
        if crossings(layers) < fewest:
            best, fewest = [list(layer) for layer in layers], crossings(layers)
    layers[:] = best


def arrange(layers: list[list[Node]]) -> float:
    """Gives every node its place and returns the width of what is drawn: nodes come near the mean of their neighbours."""
    width = max(sum(node.width + GAP for node in layer) for layer in layers)
    for layer in layers:
        spread(layer, [width * (i + 0.5) / len(layer) for i in range(len(layer))], width)
    for turn in range(60):
        for layer in layers if turn % 2 else reversed(layers):
            wanted = []
            for node in layer:
                near = node.above + node.below
                wanted.append(sum(other.x for other in near) / len(near) if near else node.x)
            spread(layer, wanted, width)
    return width


def spread(layer: list[Node], wanted: list[float], width: float) -> None:
    """Places a layer's nodes in their order, near where they are wanted, apart from each other and inside ``width``."""
    left: list[float] = []
    for i, node in enumerate(layer):
        least = left[-1] + (layer[i - 1].width + node.width) / 2 + GAP if left else node.width / 2
        left.append(max(wanted[i], least))
    right: list[float] = []
    for i in range(len(layer) - 1, -1, -1):
        most = right[-1] - (layer[i + 1].width + layer[i].width) / 2 - GAP if right else width - layer[i].width / 2
        right.append(min(left[i], most))
    for node, x in zip(layer, reversed(right), strict=True):
        node.x = x


def drawing(root: Path) -> str:
    """The picture as SVG."""
    layers = nodes_of(root)
    order(layers)
    width = arrange(layers)
    shown = [i for i in range(len(layers) - 1, -1, -1) if any(node.name for node in layers[i])]
    top, tops, heights = float(MARGIN), {}, {}
    for i in shown:
        tops[i], heights[i] = top, max(node.height() for node in layers[i] if node.name)
        top += heights[i] + BETWEEN
    right = LEFT + width + MARGIN
    whole, tall = right + RIGHT + MARGIN, top - BETWEEN + MARGIN
    bands, arrows, boxes = [], [], []
    for i in shown:
        size = f'width="{whole - 2 * MARGIN:.1f}" height="{heights[i] + 16:.1f}"'
        bands.append(f'<rect class="layer" x="{MARGIN}" y="{tops[i] - 8:.1f}" {size} rx="8"/>')
        bands.append(f'<text x="{MARGIN + 10}" y="{tops[i] + TITLE - 4:.1f}">layer {i}</text>')
        for j, package in enumerate(sorted(LAYERS[i][1])):
            bands.append(f'<text x="{right:.1f}" y="{tops[i] + TITLE - 4 + j * LINE:.1f}">{escape(package)}</text>')
        for node in layers[i]:
            arrows += arrows_of(node, tops, heights)
            if node.name:
                boxes += box_of(node, tops[i])
    size = f'viewBox="0 0 {whole:.0f} {tall:.0f}" width="{whole:.0f}" height="{tall:.0f}"'
    said = "arkfast's folders by layer; every arrow leads from a folder down to one that it imports"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(said)}</title>",
            f"<style>{STYLE}</style>",
            *(
                f'<marker id="head{tone}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
                f'<path fill="var(--s{tone})" d="M0 0L8 4L0 8Z"/></marker>'
                for tone in range(TONES)
            ),
            *bands,
            *arrows,
            *boxes,
            "</svg>\n",
        )
    )


def arrows_of(node: Node, tops: dict[int, float], heights: dict[int, float]) -> list[str]:
    """The curves that begin at a node; where an arrow crosses a layer it runs straight down."""
    found = []
    for target in node.below:
        bottom, begin, end = (
            tops[node.layer] + (node.height() if node.name else 0),
            tops[node.layer] + heights[node.layer],
            tops[target.layer],
        )
        bend = (end - begin) / 2
        here, there = f"{LEFT + node.x:.1f}", f"{LEFT + target.x:.1f}"
        path = f"M{here} {bottom:.1f}V{begin:.1f}C{here} {begin + bend:.1f} {there} {end - bend:.1f} {there} {end:.1f}"
        tone = TONE_OF[target.name or target.target]
        head = f' marker-end="url(#head{tone})"' if target.name else ""
        found.append(f'<path class="arrow" stroke="var(--s{tone})" d="{path}"{head}/>')
    return found


def box_of(node: Node, top: float) -> list[str]:
    left = LEFT + node.x - BOX / 2
    found = [
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{BOX}" height="{node.height():.1f}" rx="6"/>',
        f'<text class="name" x="{left + 10:.1f}" y="{top + TITLE:.1f}">{escape(node.name)}</text>',
    ]
    for i, (kind, line) in enumerate(node.lines(), start=1):
        found.append(f'<text class="{kind}" x="{left + 10:.1f}" y="{top + TITLE + i * LINE + 2:.1f}">{escape(line)}</text>')
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Draws docs/architecture.svg from the imports.")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=root, help="the checkout that is read (default: this one)")
    parser.add_argument("--output", type=Path, help="the file to write (default: docs/architecture.svg in the checkout)")
    given = parser.parse_args(argv)
    (given.output or given.root / "docs" / "architecture.svg").write_text(drawing(given.root), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
