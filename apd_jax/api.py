"""The public names of the package; `apd_jax` has all of them."""

from apd_jax.attribution import (
    ablation_attributions,
    activation_attributions,
    gradient_attributions,
)
from apd_jax.components import Components, Factors, in_parameter_space, init_components
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.decomposition.checks import check_target
from apd_jax.decomposition.decompose import decompose
from apd_jax.decomposition.loading import load
from apd_jax.decomposition.plan import plan
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.evaluation.compare import compare, compare_seeds
from apd_jax.evaluation.evidence import Evidence, Limits
from apd_jax.evaluation.shuffled import shuffled
from apd_jax.masked.forward import composed_apply, masked_apply
from apd_jax.objective.coefficients import Coefficients, Routes
from apd_jax.objective.objective import Objective
from apd_jax.objective.selection import batch_topk_mask, topk_mask
from apd_jax.programs import compiler_fault
from apd_jax.runtime.loop import Observer
from apd_jax.runtime.outcome import DataFailed, Diverged, Terminated
from apd_jax.sites import Target
from apd_jax.training.config import Settings
from apd_jax.training.requirements import Requirements

compiler_fault.warn_if_too_late()

__all__ = [
    "Coefficients",
    "Components",
    "DataFailed",
    "Decomposition",
    "Diverged",
    "Evidence",
    "Factors",
    "Limits",
    "Objective",
    "Observer",
    "Requirements",
    "Routes",
    "Settings",
    "SparseFeatures",
    "Target",
    "Terminated",
    "UserError",
    "ablation_attributions",
    "activation_attributions",
    "batch_topk_mask",
    "check_target",
    "compare",
    "compare_seeds",
    "composed_apply",
    "decompose",
    "gradient_attributions",
    "in_parameter_space",
    "init_components",
    "load",
    "masked_apply",
    "plan",
    "shuffled",
    "topk_mask",
]
