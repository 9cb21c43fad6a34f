"""Layers of convolutional networks and transformers: maps, tokens, their statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.case import Adapter, Case
from tutelage import losses
from tutelage.objectives import projectors


def _vkd(case: Case) -> Tensor:
    projected = F.linear(case["z_s"], case["projector.weight"])
    return case.hyper["alpha"] * losses.vkd(projected, case["z_t_conv"]).mean()


def _orthogonal(case: Case) -> Tensor:
    """The projector begins at the orthogonal factor of the recorded weight."""
    student, teacher = (tuple(case[name].shape[1:]) for name in ("z_s", "z_t_conv"))
    projector = projectors.orthogonal(student, teacher).double()
    with torch.no_grad():
        projector.linear.weight = case["raw"]
    return case.hyper["alpha"] * losses.vkd(projector(case["z_s"]), case["z_t_conv"]).mean()


def _vidt(case: Case) -> Tensor:
    """The student's rows are the positions of the teacher's maps, in their order."""
    rows = case["f_t"].flatten(2).mT
    return losses.vkd(case["f_s"].view_as(rows), rows, normalise="batch")


def _cwd(case: Case) -> Tensor:
    return case.hyper["loss_weight"] * losses.cwd(case["f_s"], case["f_t"], temperature=case.hyper["tau"]).mean()


def _wkd_f(case: Case) -> Tensor:
    """The student's map is mapped first where the row has a projector, whose batch norm is as it is first."""
    student = case["f_s"]
    if "conv_reg.conv.weight" in case.inputs:
        student = F.conv2d(student, case["conv_reg.conv.weight"], case["conv_reg.conv.bias"])
        student = F.batch_norm(student, None, None, training=True).relu()
    how = {"mean_cov_ratio": case.hyper["mean_cov_ratio"], "grid": case.hyper["grid"], "epsilon": case.hyper["eps"]}
    return losses.wkd_f(student, case["f_t"], **how).mean()


METHODS: Mapping[str, Adapter] = {
    "VkD": _vkd,
    "VkD.orthogonal": _orthogonal,
    "VkD.vidt": _vidt,
    "CWD": _cwd,
    "CWD.spatial": lambda c: losses.cwd(c["f_s"], c["f_t"], temperature=c.hyper["temperature"], over="channels").mean(),
    "WKD-F": _wkd_f,
}
