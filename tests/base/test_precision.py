"""Precision follows what the device has units for."""

import logging

import pytest
import torch

from labelloop.base import precision
from labelloop.base.precision import choose_precision, has_units

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def bf16_units(request, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    precision._warn_once.cache_clear()
    return request.param


@pytest.mark.parametrize("device", [CPU, GPU])
def test_explicit_bf16_is_used_where_it_is_native_and_falls_back_in_one_line(bf16_units, device, caplog):
    caplog.set_level(logging.WARNING)
    chosen = {choose_precision("bf16", device, on_cpu="fp32") for _ in range(3)}
    assert chosen == {"bf16" if bf16_units else "fp32"}
    assert [r.getMessage().count("fp32 is used") for r in caplog.records] == ([] if bf16_units else [1])


def test_auto_says_nothing_and_takes_the_best(bf16_units, caplog):
    assert choose_precision("auto", GPU, on_cpu="bf16") == "fp16"
    assert choose_precision("auto", CPU, on_cpu="bf16") == ("bf16" if bf16_units else "fp32")
    assert choose_precision("auto", CPU, on_cpu="fp32") == choose_precision("fp32", CPU, on_cpu="bf16") == "fp32"
    assert not caplog.records


def test_no_cpu_computes_in_fp16(bf16_units):
    assert not has_units("fp16", CPU) and has_units("fp16", GPU)
    assert choose_precision("fp16", CPU, on_cpu="fp32") == "fp32"


def test_without_onednn_for_bf16_there_are_no_units():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert not has_units("bf16", CPU)
