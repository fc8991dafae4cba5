"""What a command costs, and FLARE's area under the curve of GPU memory beside the true one.

    python benchmarks/inference/container.py --gpu 1 docker container run ... teamname:latest sh predict.sh

FLARE looks from outside, from the start of the container to its end, as this does. GPU memory is that of the whole
card, whoever uses it. RAM and CPU are those of this script, the command and its children; what runs in a container is
none of these.
"""

import argparse
import importlib.util
import subprocess
from dataclasses import asdict

from labelloop.metrics.efficiency import Meter, flare_area


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=int, help="index of the GPU, as nvidia-smi counts; default: none is looked at")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command, last")
    options = parser.parse_args()
    if not options.command:
        parser.error("name a command")
    if options.gpu is not None and not importlib.util.find_spec("pynvml"):
        parser.error("--gpu needs the package nvidia-ml-py; torch would take memory of the GPU to look at it")
    with Meter(gpu=options.gpu) as meter:
        status = subprocess.run(options.command).returncode
    measured = asdict(meter.usage()) | {"flare_area_gpu_mb_s": flare_area(meter.samples)}
    for name, value in measured.items():
        if value is not None:
            print(f"{name}: {value:.1f}")
    raise SystemExit(status)


if __name__ == "__main__":
    main()
