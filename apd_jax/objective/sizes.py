"""Whether k fits the batch and the number of components, before anything is computed.

Letters: B batch, T positions, C components, k active components per row.
"""

import math

from apd_jax.errors import UserError
from apd_jax.objective import selection


def check(
    rule: selection.Rule, k: float | None, distil: bool, num_rows: int | None, num_components: int
) -> None:
    """Raise UserError where k does not fit; see `Objective.check_sizes`.

    Args:
      rule: rule of the selection.
      k: active components per row; None where nothing is selected.
      distil: whether the last component is always active and not counted.
      num_rows: B, or B·T; None where T is not known before the network is run.
      num_components: C.
    """
    candidates = num_components - distil
    if candidates < 1:
        raise UserError(
            f"distil needs num_components of at least 2, got {num_components}: the last one is "
            "always active and is not counted"
        )
    if k is None or rule == "exact":
        return
    if k > candidates:
        less = " - 1, since distil keeps the last one active" if distil else ""
        raise UserError(f"topk must be at most num_components{less} ({candidates}), got {k}")
    try:
        if rule == "sample":
            selection.check_topk(k, candidates)
            return
        if num_rows is None:
            # As many rows as k needs to select one pair: the batch itself is checked when it comes.
            num_rows = math.ceil(1 / k) if k > 0 else 1
        selection.num_active(k, num_rows, candidates)
    except UserError as error:
        sizes = f"num_components={num_components}" + (" with distil" if distil else "")
        raise UserError(f"topk does not fit batch_size and {sizes}: {error}") from error
