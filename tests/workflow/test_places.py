"""Where the project may lie: every step runs from an interpreter, and into results, with odd letters in their paths."""

import subprocess
import sys
from pathlib import Path

from tiny_project import ROOT, Collection, Project

ODD = "My Drive, O'Neil, Prüfung (1)"


def test_a_path_with_spaces_and_quotes_stops_no_step(tmp_path: Path, collection: Collection):
    row = next(iter(collection.phantom.values()))
    (tmp_path / "cases.csv").write_text(
        "case,image,label,dataset,role\n" f"a,{row['image']},{row['label']},{row['dataset']},train\n"
    )  # fmt: skip
    project = Project.new(tmp_path / ODD / "project", tmp_path / "cases.csv", results=f"results {ODD}")
    environment = tmp_path / ODD / ".venv"
    environment.symlink_to(Path(sys.executable).parents[1])
    command = project.command("--cores", "1", f"results {ODD}/groups.csv")
    command[0] = str(environment / "bin" / Path(sys.executable).name)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (project.folder / f"results {ODD}" / "groups.csv").is_file()
