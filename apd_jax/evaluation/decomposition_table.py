"""A decomposition as a table, with one row for each site."""

from apd_jax.components import num_components
from apd_jax.evaluation import ranks, tables
from apd_jax.evaluation.model import ComponentModel
from apd_jax.runtime import metric_names


def title(decomposition: ComponentModel) -> str:
    """A decomposition in one line."""
    settings, components = decomposition.settings, decomposition.components
    count = num_components(components)
    plural = "" if len(components) == 1 else "s"
    line = f"{count} components at {len(components)} site{plural}"
    if decomposition.history:
        last = decomposition.history[-1]
        line += f", {last['step']:.0f} of {settings.steps} steps"
        line += f", loss {tables.number(metric_names.losses(last).get('total'))}"
    return line


def table(decomposition: ComponentModel) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a decomposition's table, with one row for each site."""
    missing = ranks.unfaithfulness(decomposition.target, decomposition.components)
    empty = ranks.empty_sites(decomposition.target)
    rows = []
    for name, site in decomposition.target.sites.items():
        factors = decomposition.components[name]
        shape = " x ".join(map(str, site.shape))
        share = "all zero" if name in empty else tables.number(missing[name])
        rows.append([name, shape, str(factors.reads.shape[-2]), share])
    return ["site", "matrix", "rank", "missing share"], rows
