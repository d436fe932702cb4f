"""A network run with an operation in place of every use of a site.

Rows of a use come with the batch in front, [B, ..., (G), d_in], and with the positions after it
where these are asked for. A network of which that can't be told is run example by example.
Letters: B batch, T positions (one axis or several), G stacked blocks, d_in / d_out widths of a use.
"""

import collections
import dataclasses
import math
import os.path
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.sites.interpreter import Interpreter
from apd_jax.sites.layout import Placement
from apd_jax.sites.patches import Patches
from apd_jax.sites.program import trace
from apd_jax.sites.rows import Lead, batch_size, find_leads
from apd_jax.sites.target import Target
from apd_jax.sites.uses import LinearUse

PyTree = Any
Key = tuple[str, int]


class SiteCall(NamedTuple):
    """One use of a site while a network runs.

    Attributes:
      key: the site's name, and how many times it was used before in the same pass.
      x: [B, ..., (G), d_in] rows that the site reads; for a look-up their indices [B, ...],
        for a convolution its `Patches`.
      placement: how this use lies in the matrix of its site.
      as_is: gives what the network itself computes, [B, ..., (G), d_out].
    """

    key: Key
    x: jax.Array | Patches
    placement: Placement
    as_is: Callable[[], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SiteRecord:
    """What passed through one use of a site: `x` and `y`, see `SiteCall`."""

    x: jax.Array | Patches
    y: jax.Array
    placement: Placement = dataclasses.field(metadata={"static": True})

    @property
    def name(self) -> str:
        """The site's name."""
        return self.placement.site

    def flat_y(self) -> jax.Array:
        """Output rows as a table, [rows, width]."""
        own = self.y.shape[-2:] if self.placement.stacked else self.y.shape[-1:]
        return self.y.reshape(-1, math.prod(own))


Records = dict[Key, SiteRecord]
Operation = Callable[[SiteCall], jax.Array]


def as_is(call: SiteCall) -> jax.Array:
    """Compute what the network itself computes."""
    return call.as_is()


def run(
    target: Target, x: PyTree, operation: Operation, *, positions: bool = False
) -> tuple[PyTree, Records]:
    """Run the network with `operation` in place of every use of a site.

    Args:
      target: the network.
      x: [B, ...] inputs; of a network that is not `batched` a single example, B = 1.
      operation: computes a use's output rows from a `SiteCall`.
      positions: have the positions right after the batch in all rows.

    Returns:
      The network's outputs, and what went in and out of every use of a site.
    """
    target.at(x)
    program = trace(target.apply_fn, target.params, x)
    leads = _leads(target, x, program, positions)
    # All uses of a leaf are counted, those of its sites that were not chosen as well: the n-th use
    # that is met here is the n-th one of the traced program, whose placement is known.
    chosen = {site.leaf for site in target.sites.values()}
    uses: collections.Counter[str] = collections.Counter()
    met: collections.Counter[int] = collections.Counter()
    records: Records = {}

    def on_use(use: LinearUse, result):
        leaf = use.view.leaf
        place = met[leaf]
        met[leaf] += 1
        placement = program.placements[leaf][place]
        if placement.site not in target.sites:
            return result()
        key = placement.site, uses[placement.site]
        uses[placement.site] += 1
        order = _Order(len(use.row_shape), leads[leaf][place])
        rows = order.arranged(use.to_rows())
        # The original result is computed only if the operation asks for it.
        call = SiteCall(key, rows, placement, lambda: order.forward(use.settle(result())))
        y = use.finish(order.backward(operation(call)))
        records[key] = SiteRecord(rows, order.forward(y), placement)
        # Operations compute in the dtype of the factors; the network continues in its own.
        return use.from_rows(y).astype(jax.eval_shape(result).dtype)

    def never(leaf, reason):
        # A leaf with such a use is no site.
        raise AssertionError(f"leaf {leaf} is used otherwise: {reason}")

    leaves = jax.tree.leaves(target.params)
    results = Interpreter(on_use, never).run(program.closed, leaves, jax.tree.leaves(x), chosen)
    return jax.tree.unflatten(program.out_tree, results), records


class _Order:
    """Moves the batch, and the positions, of rows [*R, ...] to the front and back."""

    def __init__(self, num_axes: int, lead: Lead):
        first = [axis for axis in (lead.batch, *lead.positions) if axis is not None]
        self._added = lead.batch is None
        self._order = (*first, *(a for a in range(num_axes) if a not in first))

    def arranged(self, rows: jax.Array | Patches) -> jax.Array | Patches:
        """`forward` of what a use reads."""
        if isinstance(rows, Patches):
            return rows.arranged(self._order, self._added)
        return self.forward(rows)

    def forward(self, rows: jax.Array) -> jax.Array:
        """[*R, ...] to [B, (T), ...]; a single example's rows get a batch axis of 1."""
        rows = self._permuted(rows, self._order)
        return rows[None] if self._added else rows

    def backward(self, rows: jax.Array) -> jax.Array:
        """The inverse."""
        return self._permuted(rows[0] if self._added else rows, np.argsort(self._order).tolist())

    def _permuted(self, rows: jax.Array, order: Sequence[int]) -> jax.Array:
        rest = range(len(order), rows.ndim)
        whole = (*(int(a) for a in order), *rest)
        return rows if whole == tuple(range(rows.ndim)) else jnp.transpose(rows, whole)


def _leads(target: Target, x: PyTree, program, positions: bool) -> dict[int, list[Lead]]:
    lengths = position_shape(target, x) if positions else ()
    leads = find_leads(target.apply_fn, target.params, x, program, lengths)
    # Callers divide such batches by `over_examples` first.
    if batch_size(x) > 1 and not _all_known(target, program, leads):
        raise AssertionError("the batch of some rows is unknown: take examples one by one")
    for site, lead in _used(target, program, leads):
        if None in lead.positions:
            raise UserError(
                f"site {site!r} is used on rows that have no axes for the positions, the axes "
                f"{list(lengths)} of the outputs before their last one; a mask for every position "
                "needs them: choose other sites, let the network merge output axes that are not "
                "positions into the last one, or use one mask for every example"
            )
    return leads


def _used(target: Target, program, leads):
    """(site, lead) of every use of a chosen site."""
    for leaf, placements in program.placements.items():
        for placement, lead in zip(placements, leads[leaf], strict=True):
            if placement.site in target.sites:
                yield placement.site, lead


def _all_known(target: Target, program, leads) -> bool:
    return all(lead.batch is not None for _, lead in _used(target, program, leads))


def position_shape(target: Target, x: PyTree) -> tuple[int, ...]:
    """T, the lengths of the outputs' axes between the batch and the last; those that all share.

    Raises:
      UserError: outputs without such an axis.
    """
    outputs = trace(target.apply_fn, target.params, x).closed.out_avals
    shapes = [leaf.shape for leaf in outputs]
    shared = os.path.commonprefix([shape[1:-1] for shape in shapes])
    if not shared:
        raise UserError(
            "per_position (a selection for every position) needs outputs [B, T, O] with one or "
            f"more axes T, got {shapes}"
        )
    return shared


def batched(target: Target, x: PyTree) -> bool:
    """Whether the rows of every use of a site have an axis that is the batch."""
    target.at(x)
    program = trace(target.apply_fn, target.params, x)
    leads = find_leads(target.apply_fn, target.params, x, program)
    return _all_known(target, program, leads)


def over_examples(function: Callable, target: Target, x: PyTree, *others: PyTree) -> PyTree:
    """`function(x, *others)` for the whole batch, or one example after another.

    Args:
      function: maps inputs [B, ...] and further arrays [B, ...] to arrays [B, ...], in which
        examples don't meet.
      target: the network that the function runs.
      x, others: its arguments.
    """
    if batch_size(x) == 1 or batched(target, x):
        return function(x, *others)

    # `vmap` over batches of one example: within it no axis has to be told apart from the batch.
    def one(*example):
        result = function(*jax.tree.map(lambda leaf: leaf[None], example))
        return jax.tree.map(lambda leaf: leaf[0], result)

    return jax.vmap(one)(x, *others)
