"""A tiny network with random weights in a model folder."""

import torch

from labelloop.base.files import sha256, write_json
from labelloop.networks.network import build_network
from labelloop.networks.plans import Plan

torch.set_num_threads(1)  # tiny networks: threads cost more than they give

CLASSES = ("liver", "spleen", "tumor")
IDS = {"liver": 1, "spleen": 3, "tumor": 14}


def tiny_plan(**changes) -> Plan:
    values = {"spacing_mm": (2.5, 1.5, 1.5), "patch": (16, 16, 16), "features": (4, 8)} | changes
    return Plan(**values)


def save_model(folder, plan=None, classes=CLASSES, ids=None, seed=0):
    plan, ids = plan or tiny_plan(), ids or {c: IDS[c] for c in classes}
    torch.manual_seed(seed)
    network = build_network(plan, len(classes) + 1)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": network.state_dict()}, folder / "weights.pt")
    content = {"name": folder.name, "classes": list(classes), "class_ids": ids, "plan": plan.model_dump(mode="json"),
               "weights_sha256": sha256(folder / "weights.pt"), "trained_on": "nothing"}  # fmt: skip
    write_json(folder / "model.json", content)
    return folder
