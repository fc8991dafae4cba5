"""How the code hangs together: counted in any checkout of this repository.

    python benchmarks/structure/run.py [CHECKOUT ...]

A layer is a link of the longest chain of imports between packages (folders of the code, and modules beside them); what
imports each other is in one layer. Inputs that are given a name in a rule's `input:` are looked for in its script (or
its step's arguments); those of input functions are not counted. What jobs really open is tested
(tests/workflow/test_opened.py).
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import networkx
from imports import imported

CASES = 4000
FILES = ("case_{number:04d}_0000.nii.gz", "case_{number:04d}.nii.gz")
PARAMS = """
import json, sys
from pathlib import Path
try:
    from labelloop.base.scripting import standalone
except ImportError:
    from labelloop.scripting import standalone
job = standalone("train", Path(sys.argv[1]), sys.argv[2], model="student")
print("bytes", len(json.dumps(dict(job.params.items()))))
"""


def packages(checkout: Path) -> networkx.DiGraph:
    """Return which packages of labelloop, and modules beside them, import from which."""
    source, graph = checkout / "src/labelloop", networkx.DiGraph()
    for file in source.rglob("*.py"):
        package = file.relative_to(source).with_suffix("").parts[0]
        graph.add_edges_from((package, other) for other in imported(file))
    graph.remove_nodes_from([node for node in graph if not list(source.glob(f"{node}*"))])
    return graph


def loose(checkout: Path) -> int:
    """Count the modules beside the packages."""
    return len([file for file in (checkout / "src/labelloop").glob("*.py") if file.stem != "__init__"])


def layers(checkout: Path) -> int:
    """Return the length of the longest chain of imports between packages."""
    graph = packages(checkout)
    graph.remove_edges_from(networkx.selfloop_edges(graph))
    return 1 + networkx.dag_longest_path_length(networkx.condensation(graph))


def lines_of_best(checkout: Path) -> int:
    """Return the lines of the recipe `best`, without comments and empty ones."""
    lines = (checkout / "config/recipes/best.yaml").read_text().splitlines()
    return len([line for line in lines if line.strip() and not line.strip().startswith("#")])


def unread(checkout: Path) -> list[str]:
    """Return the named inputs that a rule's script, or its step, does not mention: `rule.input`."""
    steps = "\n".join(path.read_text() for path in (checkout / "src/labelloop/steps").glob("*.py"))
    found = []
    for file in sorted((checkout / "workflow/rules").glob("*.smk")):
        for text in re.split(r"\n *rule ", file.read_text())[1:]:
            name, script = text.split(":")[0], re.search(r"\.\./scripts/(\w+\.py)", text)
            block = re.search(r"\n( *)input:\n(.*?)\n\1output:", text, re.DOTALL)
            if not script or not block:
                continue
            taken = (checkout / "workflow/scripts" / script[1]).read_text()
            if script[1] == "step.py":
                taken = re.search(rf"^def {name}\((.*?)\) -> None", steps, re.DOTALL | re.MULTILINE)[1]
                taken += " cases geometry annotation upright" if "survey: SurveyTables" in taken else ""
            inner = " " * (len(block[1]) + 4)
            named = re.findall(rf"^{inner}(\w+)=", block[2], re.MULTILINE)
            found += [f"{name}.{each}" for each in named if not re.search(rf"\b{each}\b", taken.replace("output.", ""))]
    return found


def climbs(checkout: Path) -> int:
    """Count `parents[n]` and `.parent` in scripts and steps."""
    files = [*(checkout / "workflow/scripts").glob("*.py"), *(checkout / "src/labelloop/steps").glob("*.py")]
    return sum(len(re.findall(r"\.parents?\b", path.read_text())) for path in files)


def bytes_of_params(checkout: Path) -> int:
    """Return the bytes of the params of a training, as JSON; Snakemake keeps them for each output."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number in range(CASES):
            files = [name.format(number=number) for name in FILES]
            for name in files:
                Path(folder, name).touch()
            rows.append(f"case_{number:04d},{','.join(files)},flare22,{'test' if number % 20 == 1 else 'train'}")
        Path(folder, "cases.csv").write_text("\n".join(["case,image,label,dataset,role", *rows]) + "\n")
        config = Path(folder, "config.yaml")
        config.write_text(f"cases: {folder}/cases.csv\nresults: {folder}/results\ndevice: cpu\n")
        command = [sys.executable, "-c", PARAMS, checkout, config]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return int(re.search(r"^bytes (\d+)$", done.stdout, re.MULTILINE)[1])


COUNTS = {
    "modules beside the packages": loose,
    "layers of imports": layers,
    "named inputs not read": lambda checkout: len(unread(checkout)),
    "paths by `parent` or `parents[n]`": climbs,
    f"params of a training, {CASES} cases, bytes": bytes_of_params,
    "lines of `best.yaml`": lines_of_best,
}


def main() -> None:
    checkouts = [Path(argument).resolve() for argument in sys.argv[1:]] or [Path(__file__).resolve().parents[2]]
    print(f"| | {' | '.join(checkout.name for checkout in checkouts)} |")
    print(f"| --- |{' ---: |' * len(checkouts)}")
    for name, count in COUNTS.items():
        print(f"| {name} | {' | '.join(f'{count(checkout):,}' for checkout in checkouts)} |", flush=True)


if __name__ == "__main__":
    main()
