"""Hyperparameters: each is a field of a frozen dataclass, with a default and a description.

Such a dataclass is called a *record*. A field of a record may hold another record, a *part*. Flags,
keywords and saved files represent a record as a mapping from names to plain values. A part is a
nested mapping, unless it is `flat`: then its fields are merged into those of the whole record.
"""

from apd_jax.config_fields.checks import (
    check_at_least,
    check_names,
    check_takes,
    check_values,
)
from apd_jax.config_fields.declaration import (
    choices,
    flags,
    free_names,
    is_record,
    leaves,
    marked,
    optional,
    sentences,
    setting,
)
from apd_jax.config_fields.mapping import (
    check_keywords,
    from_mapping,
    plain,
    to_mapping,
    with_unchecked,
)
