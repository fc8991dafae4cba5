"""Training: the only package of labelloop that imports nnunetv2.

``settings`` what a recipe may set (light) · ``split`` which cases are validated on (light) · ``job`` what one training
is made from (light) · ``nnunet``
:func:`~labelloop.training.nnunet.train` · ``trainers`` one class a kind of training · ``losses`` · ``loading``
reproducible batches · ``work`` checkpoints and resuming · ``progress`` numbers of each epoch · ``stock`` files that
stock nnU-Net reads.
"""
