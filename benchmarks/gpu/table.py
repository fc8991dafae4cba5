"""The results of ``run.py`` as Markdown tables.

python benchmarks/gpu/table.py build/gpu/results.jsonl
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import read, results

RESULT = Path(__file__).resolve().parents[1] / "results" / "gpu.md"
Lines = Mapping[tuple[str, str], Mapping[str, Any]]
SPEED = {
    "cold s": "cold_s", "warm s": "warm_s", "prepare": "prepare", "network": "network", "export": "export",
    "peak MB": "peak_mb", "area MB s": "area_gpu_mb_s", "energy J": "energy_j", "GMAC": "gmacs",
    "equal %": "equal", "DSC": "dsc",
}  # fmt: skip
TRAINING = {
    "finite": "finite", "falls": "falls", "loss first": "first_loss", "loss last": "last_loss", "step s": "step_s",
    "first step s": "first_step_s", "waiting %": "waiting", "peak MB": "peak_mb", "workers": "workers",
}  # fmt: skip


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of all lines of a file of results."""
    last = results(lines)
    parts = {part: {step: line for (name, step), line in last.items() if name == part} for part, _ in last}
    equality = _done(parts.get("equality", {}))
    text = list(_machine(equality.pop("about", None), equality.pop("ceilings", None)))
    text += _equality(equality)
    text += _table("Inference", SPEED, {name: _flat(row) for name, row in _done(parts.get("speed", {})).items()})
    training = _done(parts.get("training", {}))
    resumed = training.pop("resume", None)
    text += _table("Training", TRAINING, training)
    if resumed:
        told = {"twice": resumed["same_twice"], "killed and resumed": resumed["same_resumed"]}
        text += ["", "Deterministic: " + ", ".join(f"{what}: {_cell('', same)}" for what, same in told.items()) + "."]
    text += _loop(_done(parts.get("loop", {})))
    text += _problems(lines, last)
    return "\n".join(text) + "\n"


def _done(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: line["result"] for name, line in steps.items() if line["status"] == "done"}


def _machine(about: Mapping[str, Any] | None, ceilings: Mapping[str, Any] | None) -> Iterator[str]:
    if about:
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
        cuda = f", CUDA {about['cuda']}, cuDNN {about['cudnn']}" if "cuda" in about else ""
        where = f"{about['device']}, {about['cores']} CPU cores, {about['date']}"
        yield f"{where}: Python {about['python']}, {versions}{cuda}."
    if ceilings:
        yield ""
        told = ", ".join(f"{name} {value:.1f}" for name, value in ceilings.items() if value is not None)
        yield f"At best: {told}."


def _equality(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a row for each scan: percent of equal voxels and mean DSC against the CPU."""
    rows = list(found.items())
    if not rows:
        return
    variants = [key for key, value in rows[0][1].items() if isinstance(value, dict)]
    yield from ("", "## Against the CPU in fp32", "", "Percent of equal voxels (mean DSC over classes).", "")
    yield from _header(["network, scan", "size", "classes", *variants])
    for name, row in rows:
        cells = [f"{100 * row[v]['equal']:.5f} ({row[v]['dsc']:.4f})" for v in variants]
        yield f"| {name} | {'x'.join(map(str, row['size']))} | {row['classes']} | {' | '.join(cells)} |"


def _loop(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield each fold's mean DSC of the organs, a column an arm, and their means."""
    if not rows:
        return
    arms = list(next(iter(rows.values())))
    yield from ("", "## Does the loop pay?", "", "Mean DSC of the organs, in percent.", "")
    yield from _header(["fold", *arms])
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(f'{100 * row[arm]:.1f}' for arm in arms)} |"
    means = [sum(row[arm] for row in rows.values()) / len(rows) for arm in arms]
    yield f"| mean | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |"


def _table(title: str, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    shown = {head: key for head, key in columns.items() if any(row.get(key) is not None for row in rows.values())}
    yield from ("", f"## {title}", "")
    yield from _header(["step", *shown])
    for name, row in rows.items():
        yield f"| {name} | {' | '.join(_cell(head, row.get(key)) for head, key in shown.items())} |"


def _header(names: Sequence[str]) -> Iterable[str]:
    return (f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return dict(row) | dict(row.get("stages", {}))


def _cell(head: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if "%" in head:
        return f"{100 * value:.3f}"
    return f"{value:.3f}" if isinstance(value, float) and value < 100 else f"{value:.0f}"


def _problems(lines: Sequence[Mapping[str, Any]], last: Lines) -> Iterator[str]:
    """Yield what failed, was begun and never ended, or was left out at the end."""
    told = [f"- {part}: {step}: {line.get('error', 'begun, never ended')}" for (part, step), line in last.items()
            if line["status"] != "done"]  # fmt: skip
    done = {key for key, line in last.items() if line["status"] == "done"}
    ends = {line["part"]: line for line in lines if "left_out" in line or "ended" in line}
    for part, line in ends.items():
        missing = [step for step in line.get("left_out", []) if (part, step) not in done]
        told += [f"- {part}: left out: {', '.join(missing)}"] if missing else []
        told += [f"- {part}: {line['ended']}"] if "ended" in line else []
    if told:
        yield from ("", "## Failed or left out", "", *told)


def write(text: str, arguments: Sequence[str]) -> Path:
    """Write the tables to benchmarks/results; return the file."""
    command = " ".join(["python benchmarks/gpu/run.py", *arguments])
    RESULT.write_text(f"# GPU\n\nWritten by `{command}`.\n\n{text}", encoding="utf-8")
    return RESULT


if __name__ == "__main__":
    print(report(read(Path(sys.argv[1]))))
