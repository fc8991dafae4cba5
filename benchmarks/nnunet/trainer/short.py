"""nnU-Net's trainer with few updates, for a CPU; found by nnU-Net through ``nnUNet_extTrainer``."""

import os

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerShort(nnUNetTrainer):  # noqa: N801
    """Few epochs of 20 updates, by default 50, as ``SHORT_EPOCHS`` says; what it predicts is looked at elsewhere.

    So few updates of SGD teach 13 structures nearly nothing, so they are AdamW's, as in ``benchmarks/loop``.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ.get("SHORT_EPOCHS", "50"))
        self.num_iterations_per_epoch = 20
        self.num_val_iterations_per_epoch = 1
        self.save_every = 1

    def configure_optimizers(self) -> tuple[torch.optim.AdamW, PolyLRScheduler]:
        """Return AdamW and nnU-Net's decay of its learning rate."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=0.01)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Leave out the validation, which would segment the training cases."""
