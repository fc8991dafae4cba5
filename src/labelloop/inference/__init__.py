"""Inference: from a stored volume to a label map on its grid, without nnunetv2.

``prepare`` volume to network grid · ``prepared`` files of such arrays · ``windows`` sliding window · ``export`` logits
to label map · ``engine`` one model on one volume · ``postprocess`` chains of models · ``infer`` many cases.
"""
