"""How much of a decomposition is active: numbers, bits, ranks, parameters.

Letters: R rows, C components, B examples of a block.
"""

import numpy as np
from scipy.special import gammaln

from apd_jax.components import Components
from apd_jax.evaluation import ranks
from apd_jax.evaluation.evidence.distance import Number
from apd_jax.evaluation.evidence.rows import Examples, rows_that_count
from apd_jax.evaluation.evidence.tally import Tally
from apd_jax.evaluation.findings import ALWAYS
from apd_jax.sites import Target


class Size:
    """Gathers sizes block by block.

    Attributes:
      active: [C] on how many of the rows that count each component is active.
      rows: R so far.
      site_ranks: `{site: [C]}` rank of every component at a site.
      network_ranks: `{site: rank}` of the target's matrices.
    """

    def __init__(self, target: Target, components: Components) -> None:
        values = ranks.singular_values(components)
        own = ranks.target_singular_values(target)
        limits = ranks.limits(own)
        self.site_ranks = {s: np.sum(values[s] > limits[s], axis=1) for s in own}
        self.network_ranks = {s: int(np.sum(own[s] > limits[s])) for s in own}
        shapes = {s: site.shape for s, site in target.sites.items()}
        self._total = sum(int(np.prod(shape)) for shape in shapes.values())
        self._parameters = sum(
            np.minimum(r * sum(shapes[s][-2:]), np.prod(shapes[s]))
            for s, r in self.site_ranks.items()
        )
        self.active = np.zeros(len(next(iter(self.site_ranks.values()))), np.int64)
        self.rows = 0

    def add(self, tally: Tally, mask: np.ndarray, block: Examples) -> None:
        """Count a block's mask [B, (T), C]."""
        valid = np.asarray(rows_that_count(block.counts, mask.shape[:-1]))
        self.active += mask[valid].sum(axis=0)
        self.rows += int(valid.sum())
        each = mask.sum(axis=-1)
        count = len(self.active)
        bits = gammaln(count + 1) - gammaln(each + 1) - gammaln(count - each + 1)
        lines = {
            "l0": each,
            "bits": bits / np.log(2),
            "active_rank": mask @ sum(self.site_ranks.values()),
            "active_parameters": mask @ self._parameters / self._total,
        }
        lines |= {f"active_rank of {s}": mask @ r for s, r in self.site_ranks.items()}
        for name, values in lines.items():
            tally.put(name, _summed(values * valid), _summed(valid))

    @property
    def network_rank(self) -> int:
        """Rank of the target's matrices, all sites together."""
        return sum(self.network_ranks.values())

    def numbers(self, tally: Tally) -> dict[str, Number]:
        """The numbers of all blocks."""
        means = ("l0", "bits", "active_rank", "active_parameters")
        return {name: tally.number(name) for name in means} | {
            "alive": Number(int(np.sum(self.active > 0))),
            "always_on": Number(int(np.sum(self.active > ALWAYS * self.rows))),
        }


def _summed(values: np.ndarray) -> np.ndarray:
    """[B] sums over an example's rows."""
    return values.reshape(len(values), -1).sum(axis=1)
