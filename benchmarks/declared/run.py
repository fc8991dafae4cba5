"""What rules declare, and what their steps take: counted in any checkout of this repository.

    python benchmarks/declared/run.py [CHECKOUT ...]

Inputs that are given a name in a rule's `input:` are looked for in its script (or its step's arguments); those of input
functions are not counted. What jobs really open is tested (tests/workflow/test_opened.py).
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = 4000
FILES = ("case_{number:04d}_0000.nii.gz", "case_{number:04d}.nii.gz")
PARAMS = """
import json, sys
from pathlib import Path
from labelloop.scripting import standalone
job = standalone("train", Path(sys.argv[1]), sys.argv[2], model="student")
print("bytes", len(json.dumps(dict(job.params.items()))))
"""


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


def main() -> None:
    measured = ("named inputs not read", "climbs to a folder above", f"params of a training, {CASES} cases, bytes")
    print(f"| checkout | {' | '.join(measured)} |")
    print("| --- | ---: | ---: | ---: |")
    for checkout in [Path(argument).resolve() for argument in sys.argv[1:]] or [Path(__file__).resolve().parents[2]]:
        lacking = unread(checkout)
        print(f"| {checkout.name} | {len(lacking)} | {climbs(checkout)} | {bytes_of_params(checkout):,} |", flush=True)
        print(", ".join(lacking), file=sys.stderr)


if __name__ == "__main__":
    main()
