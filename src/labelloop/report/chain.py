"""The chain of a recipe as a picture: reads the mermaid flow chart that ``labelloop.chain`` writes."""

import re

from markupsafe import Markup

from labelloop.report.charts import Node, flow

SHAPE = re.compile(r"^\s*(\w+)\s*[\[({/>\\]+\"?([^\"\[\](){}/\\]+)\"?[\])}/\\]+\s*;?$")
ARROW = re.compile(r"^\s*(\w+)\s*-+\.?-*>\s*(?:\|[^|]*\|\s*)?(\w+)\s*;?$")


def draw_chain(graph: str) -> Markup | None:
    """Draw a mermaid flow chart as SVG; None for any other text, or when an arrow leads back to where it came from."""
    lines = graph.strip().splitlines()
    if not lines or not re.match(r"(flowchart|graph)\b", lines[0]):
        return None
    labels: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for line in lines[1:]:
        if match := ARROW.match(line):
            edges.append((match[1], match[2]))
        elif match := SHAPE.match(line):
            labels[match[1]] = match[2].strip()
    names = dict.fromkeys([*labels, *(name for edge in edges for name in edge)])
    if not names or _circular(edges):
        return None
    nodes = {}
    for name in names:
        label = labels.get(name, name)
        kind = label.split()[0] if label.startswith(("model ", "labels ")) else "data"
        nodes[name] = Node(label, kind, tuple(a for a, b in edges if b == name))
    return flow(nodes)


def _circular(edges: list[tuple[str, str]]) -> bool:
    left = list(edges)
    while left:
        targets = {b for _, b in left}
        kept = [(a, b) for a, b in left if a in targets]
        if len(kept) == len(left):
            return True
        left = kept
    return False
