"""How attributions are divided into blocks of examples and shares of components.

Neither examples nor components interact in a linearised network, so that any division gives the
same attributions. It only bounds the tangents that exist at a time.
Letters: B batch, C components, O outputs.
"""

import jax

from apd_jax.components import Components, num_components
from apd_jax.programs import partition

# Tangents of a block: 2 MB on a device, about the size of a core's own cache. Smaller blocks would
# repeat the products that don't depend on the batch more often than the cache makes up for.
_BLOCK_ELEMENTS = 500_000
_MIN_BLOCK = 256


def num_batch_blocks(batch_size: int, tangents: int) -> int:
    """Number of equal blocks of the batch, so that tangents [C, O, block] stay small.

    Args:
      batch_size: B.
      tangents: number of elements of a single example's tangents, C·O.
    """
    wanted = batch_size * tangents // (_BLOCK_ELEMENTS * partition.number())
    blocks = 1
    # Only powers of two: batch sizes are rarely divisible by anything else.
    while blocks * 2 <= wanted and batch_size % (blocks * 2) == 0:
        blocks *= 2
    least = _MIN_BLOCK * partition.sizes()[partition.DATA]
    return blocks if batch_size // blocks >= least else 1


def num_shares(components: Components, outputs: int) -> int:
    """Number of equal shares of the components, so that tangents [share, O, B] stay small.

    Dividing components copies their factors, which pays only where tangents are larger.

    Args:
      components: `{site: Factors}`.
      outputs: number of output elements of the batch, O·B.
    """
    count = num_components(components)
    factors = sum(leaf.size for leaf in jax.tree.leaves(components))
    wanted = count * outputs // (_BLOCK_ELEMENTS * partition.number())
    if wanted < 2 or factors > count * outputs:
        return 1
    each = count // partition.sizes()[partition.COMPONENTS]  # components of a device
    fitting = (n for n in range(wanted, 2 * wanted) if each % n == 0)
    return next(fitting, 1)
