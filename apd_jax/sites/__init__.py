"""Sites: the linear uses of a network's parameters, found in its traced program.

`views` follow a leaf's entries, `uses` are the kinds of linear use (`patches` the rows of a
convolution), `layout` reads the matrix off them, `interpreter` and `program` trace and evaluate,
`rows` find the batch, `target` is the network with its chosen sites (`selection`), `evaluate` runs
it with an operation in place of every use, `adapters` take models of several libraries.
"""

from apd_jax.sites.evaluate import (
    Operation,
    Records,
    SiteCall,
    SiteRecord,
    as_is,
    batched,
    over_examples,
    position_shape,
    run,
)
from apd_jax.sites.layout import Placement, Site
from apd_jax.sites.leaf_names import leaf_name, leaf_names
from apd_jax.sites.patches import Patches
from apd_jax.sites.rows import batch_size
from apd_jax.sites.selection import Sites
from apd_jax.sites.target import PyTree, Target, check_inputs, check_is_target
