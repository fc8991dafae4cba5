"""Pack what a machine with a GPU lacks, where nothing can be installed from the network: wheels, in bundles to carry.

    python benchmarks/gpu/bundle.py --list                        # names, versions and who needs them
    python benchmarks/gpu/bundle.py --out build/bundles           # download, pack, print the lines that unpack them
    python benchmarks/gpu/bundle.py --installed there.txt --out build/bundles

The first bundle is what the engine needs beyond torch, numpy and scipy; then comes what nnU-Net's predictor and the
trainers need. Versions are those of ``envs/constraints.txt``, which the tests ran with. ``--installed`` names a file
with what the machine has (``pip list --format=freeze``); without, only torch and what it brings count as there. Wheels
are for Python 3.12 on x86-64 Linux; a package without a wheel is built here, which only pure Python allows.
"""

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "gpu_bundles.md"
PYTHON = "3.12"
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)), "manylinux2014_x86_64")
ENVIRONMENT = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.3", "sys_platform": "linux",
               "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": "",
               "implementation_name": "cpython", "platform_python_implementation": "CPython"}  # fmt: skip
TORCH_BRINGS = (
    "torch", "torchvision", "numpy", "scipy", "filelock", "typing-extensions", "sympy", "mpmath", "networkx", "jinja2",
    "markupsafe", "fsspec", "setuptools", "triton", "pillow",
)  # fmt: skip
"""What is taken to be there: torch, torchvision, scipy, and what these bring."""
STAGES: dict[str, tuple[str, ...]] = {
    "engine": ("pydantic", "pyyaml", "dynamic-network-architectures"),
    "meter": ("psutil", "nvidia-ml-py", "connected-components-3d", "tqdm"),
    "nnunet": ("nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "blosc2", "pandas", "matplotlib",
               "edt", "einops"),
    "files": ("simpleitk",),
    "workflow": ("snakemake",),
}  # fmt: skip
"""What is carried, in this order, and what it is for; what these need comes with the first that needs it."""
NOT_NEEDED = {
    "dynamic-network-architectures": ("timm",), "batchgenerators": ("unittest2", "future"),
    "blosc2": ("rich",), "nnunetv2": ("graphviz", "yacs", "requests"),
}  # fmt: skip
"""Requirements that nothing imports on the way from labelloop to the network."""
BESIDES = {"nvidia-ml-py": "13.615.71"}
"""Versions of packages that labelloop works without and that its constraints do not name."""
LARGEST = 58_000_000
"""Bytes of a bundle, at most."""


class Package(NamedTuple):
    """A package to carry, the version, and the stage that needs it first."""

    name: str
    version: str
    stage: str


Requirements = Callable[[str], Iterable[str]]


def requirements_here(name: str) -> list[str]:
    """Return the requirements of an installed package; none of one that is not installed here."""
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def needed(
    there: Iterable[str], versions: Mapping[str, str], requires: Requirements = requirements_here
) -> list[Package]:
    """Return all packages to carry, each once, stage by stage.

    Args:
        there: packages that the machine has.
        versions: the tested versions. Raises SystemExit for a package that has none.
    """
    found: dict[str, Package] = {}
    have = {canonicalize_name(name) for name in there}
    for stage, roots in STAGES.items():
        waiting = list(roots)
        while waiting:
            name = canonicalize_name(waiting.pop(0))
            if name in have or name in found:
                continue
            if name not in versions:
                raise SystemExit(f"{name}: no tested version in envs/constraints.txt")
            found[name] = Package(name, versions[name], stage)
            waiting += [other for other in _requirements(name, requires) if other not in NOT_NEEDED.get(name, ())]
    return list(found.values())


def _requirements(name: str, requires: Requirements) -> Iterator[str]:
    for line in requires(name):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(ENVIRONMENT):
            yield canonicalize_name(requirement.name)


def tested_versions(text: str) -> dict[str, str]:
    """Return the versions that a file of constraints, or ``pip list --format=freeze``, names."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pinned}


def known_versions() -> dict[str, str]:
    """Return the version to carry of each package."""
    return BESIDES | tested_versions((ROOT / "envs" / "constraints.txt").read_text(encoding="utf-8"))


def fetch(packages: Sequence[Package], folder: Path, run: Callable[..., object] = subprocess.run) -> dict[str, Path]:
    """Download the wheels that are not in ``folder`` yet, or build them; return the wheel of each package.

    Raises:
        SystemExit: for a package that has neither a wheel for the machine nor pure Python.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if package.name in wheels(folder):
            continue
        wanted = f"{package.name}=={package.version}"
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        download = [*pip, "download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON,
                    "--implementation", "cp", *platforms, "-d", str(folder), wanted]  # fmt: skip
        run(download, stderr=subprocess.DEVNULL, check=False)
        if package.name not in wheels(folder):
            run([*pip, "wheel", "--no-deps", "-w", str(folder), wanted], check=True)
        built = wheels(folder).get(package.name)
        if built is None or not (_fits(built)):
            raise SystemExit(f"{wanted}: no wheel for Python {PYTHON} on Linux, and not pure Python")
    return wheels(folder)


def _fits(wheel: Path) -> bool:
    tags = parse_wheel_filename(wheel.name)[3]
    python = PYTHON.replace(".", "")
    return any(tag.platform == "any" or (tag.interpreter == f"cp{python}" or tag.abi == "abi3") for tag in tags)


def wheels(folder: Path) -> dict[str, Path]:
    """Return the wheels in a folder by the package's name."""
    return {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("*.whl"))}


def split(sizes: Mapping[str, int], largest: int = LARGEST) -> list[list[str]]:
    """Return names in few bundles of at most ``largest`` bytes: large ones first, each where there is room.

    Raises:
        SystemExit: for a package that is larger than a bundle.
    """
    bundles: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if sizes[name] > largest:
            raise SystemExit(f"{name}: {sizes[name] / 1e6:.1f} MB, more than a bundle of {largest / 1e6:.0f} MB holds")
        room_left = [names for names in bundles if sum(sizes[n] for n in names) + sizes[name] <= largest]
        if room_left:
            room_left[0].append(name)
        else:
            bundles.append([name])
    return bundles


def pack(bundles: Sequence[Sequence[str]], found: Mapping[str, Path], out: Path) -> list[Path]:
    """Write each bundle as a zip file of wheels, which are compressed already; return the files."""
    files = []
    for number, names in enumerate(bundles, start=1):
        file = out / f"bundle_{number}.zip"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in names:
                archive.write(found[name], found[name].name)
        files.append(file)
    return files


def unpacking(file: Path, place: str = "/tmp/site") -> str:
    """Return the line that unpacks a bundle where pip may be missing: a wheel is a zip file of modules."""
    wheels_in = f"[z.extractall('{place}') for z in (zipfile.ZipFile(b.open(n)) for n in b.namelist())]"
    return (
        f"python3 -c \"import zipfile; b = zipfile.ZipFile('{file.name}'); {wheels_in}\" && export PYTHONPATH={place}"
    )


def table(bundles: Mapping[str, Sequence[Package]], sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield what is in each bundle, in Markdown."""
    for file, packages in bundles.items():
        total = sum(sizes[package.name] for package in packages) / 1e6
        yield from ("", f"`{file}`, {total:.1f} MB:", "", "| for | wheel | MB |", "| --- | --- | ---: |")
        for package in packages:
            yield f"| {package.stage} | {package.name} {package.version} | {sizes[package.name] / 1e6:.2f} |"
        yield from ("", "```", unpacking(Path(file)), "```")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installed", type=Path, help="what the machine has: pip list --format=freeze")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bundles")
    parser.add_argument("--list", action="store_true", help="print what is needed, and end")
    parser.add_argument("--write", action="store_true", help=f"write benchmarks/results/{RESULT.name}")
    options = parser.parse_args()
    there = list(TORCH_BRINGS)
    if options.installed:
        there += tested_versions(options.installed.read_text(encoding="utf-8"))
    packages = {package.name: package for package in needed(there, known_versions())}
    if options.list:
        print("\n".join(f"{p.stage:8} {p.name}=={p.version}" for p in packages.values()))
        return
    found = fetch(list(packages.values()), options.out / "wheels")
    sizes = {name: found[name].stat().st_size for name in packages}
    engine = [name for name, package in packages.items() if package.stage == "engine"]
    bundles = split({name: sizes[name] for name in engine})
    bundles += split({name: size for name, size in sizes.items() if name not in engine})
    files = pack(bundles, found, options.out)
    contents = {file.name: [packages[n] for n in names] for file, names in zip(files, bundles, strict=True)}
    text = "\n".join(table(contents, sizes)) + "\n"
    print(text)
    if options.write:
        told = f"Written by `python benchmarks/gpu/bundle.py --write`: Python {PYTHON}, Linux."
        RESULT.write_text(f"# Bundles to carry to a GPU\n\n{told}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
