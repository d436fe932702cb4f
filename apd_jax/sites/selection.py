"""Which matrices of a network are decomposed: those chosen by name; of the others, why not."""

import collections
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from apd_jax.config_fields.checks import check_takes
from apd_jax.config_fields.values import names
from apd_jax.errors import UserError
from apd_jax.sites.layout import Site
from apd_jax.sites.program import Left

Selection = str | Sequence[str] | Callable[[str, Any], bool] | None
# Last parts of a path that may be left out where no other leaf is meant.
_ENDINGS = ("/kernel", "/weight", "/w", "/embedding", "/value", ".weight")


class Sites(Mapping[str, Site]):
    """The decomposed sites of a network by name, and the parameters that are left as they are.

    Printed, it is a table. A trailing `/kernel`, `/weight`, `/w`, `/embedding`, `/value` or
    `.weight` of a name may be left out where no other site is meant.

    Attributes:
      left: the other parameters, each with the reason.
      convolves: whether the network has convolutions, of whatever arrays.
    """

    def __init__(self, sites: Sequence[Site], left: Sequence[Left], convolves: bool):
        self._sites = {site.name: site for site in sites}
        self.left, self.convolves = tuple(left), convolves

    def full_name(self, name: str) -> str:
        """The whole name of a site.

        Raises:
          UserError: no site of that name, or several.
        """
        if name in self._sites:
            return name
        found = [full for full in self._sites if _shortened(full) == name]
        if len(found) != 1:
            what = f"several sites are called {name!r}: {found}" if found else f"no site {name!r}"
            raise UserError(f"{what}; the sites are {list(self._sites)}")
        return found[0]

    def __getitem__(self, name: str) -> Site:
        if name in self._sites:
            return self._sites[name]
        try:
            return self._sites[self.full_name(name)]
        except UserError as error:
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __hash__(self) -> int:
        return hash(tuple(self._sites.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sites) and self._sites == other._sites

    def __repr__(self) -> str:
        rows = [
            (site.name, " x ".join(map(str, site.shape)), _counted(site.kinds))
            for site in self._sites.values()
        ]
        wide = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
        lines = ["decomposed:"]
        lines += [f"  {name:<{wide[0]}}  {shape:<{wide[1]}}  {kind}" for name, shape, kind in rows]
        lines += ["left as they are:"] if self.left else []
        lines += [f"  {left.path} {list(left.shape)}: {left.reason}" for left in self.left]
        return "\n".join(lines)


def _counted(kinds: Sequence[str]) -> str:
    """Kinds of uses in order, each once, with their number where it is not 1."""
    counts = collections.Counter(kinds)
    return "; ".join(kind if n == 1 else f"{kind} ({n} uses)" for kind, n in counts.items())


def _shortened(name: str) -> str:
    """A name without its last part, where that only says that it is a weight."""
    base, bracket, index = name.partition("[")
    for ending in _ENDINGS:
        if base.endswith(ending):
            return base.removesuffix(ending) + bracket + index
    return name


def _matches(pattern: str, name: str) -> bool:
    path = name.partition("[")[0]
    names = {name, path, _shortened(name), _shortened(path)}
    return pattern in names or any(fnmatch.fnmatchcase(n, pattern) for n in names)


def as_selection(given: Any) -> Selection:
    """A selection that can be compared: None, a name, a function, or names as a tuple.

    Raises:
      UserError: something else, no name, or a function of other arguments than path and leaf.
    """
    if callable(given):
        check_takes("sites", given, "path", "leaf")
        return given
    if given is None or isinstance(given, str):
        return given
    found = names("sites", given)
    if not found:
        raise UserError(
            f"sites names nothing to decompose, got {given!r:.100}: give names or patterns, or "
            "None for all that can be decomposed"
        )
    return found


def check_names(selection: Selection, paths: Sequence[str]) -> None:
    """Raise UserError for a name or pattern that fits no parameter, before anything is traced.

    Args:
      selection: what is to be decomposed.
      paths: paths of the network's parameters.
    """
    if selection is None or callable(selection):
        return
    for pattern in [selection] if isinstance(selection, str) else selection:
        # The index of a stack is no part of a path: how a leaf is divided is known after tracing.
        names = {pattern, pattern.partition("[")[0]}
        if not any(_matches(name, path) for name in names for path in paths):
            raise UserError(f"sites: no parameter fits {pattern!r}; there are {list(paths)}")


def select(
    selection: Selection, sites: dict[str, Site], left: Sequence[Left], leaves: dict[str, Any]
) -> set[str]:
    """Names of the chosen sites."""
    if callable(selection):
        wanted = {path for path, leaf in leaves.items() if _is_wanted(selection, path, leaf)}
        if leaves and not wanted:
            raise UserError(
                f"sites: the function selects no parameter: it gives False for all of "
                f"{list(leaves)}"
            )
        _refuse([other for other in left if other.path in wanted])
        chosen = {name for name, site in sites.items() if site.path in wanted}
    elif selection is None:
        chosen = set(sites)
    else:
        patterns = [selection] if isinstance(selection, str) else list(selection)
        chosen = set()
        for pattern in patterns:
            chosen |= _matching(pattern, sites, left, leaves)
    if not chosen:
        if not leaves:
            raise UserError("there is no site to decompose: the network has no parameters")
        reasons = "".join(f"\n  {o.path} {list(o.shape)}: {o.reason}" for o in left)
        raise UserError(f"there is no site to decompose; the parameters are{reasons}")
    return chosen


def _is_wanted(selection: Callable[[str, Any], Any], path: str, leaf: Any) -> bool:
    found = selection(path, leaf)
    try:
        return bool(found)
    except Exception as error:  # an array of several, or one that is traced
        raise UserError(
            f"sites: the function must give True or False for each parameter, got {found!r:.100} "
            f"for {path!r}"
        ) from error


def _matching(pattern, sites, left, leaves) -> set[str]:
    """Names of the sites that a pattern means; a bias that it happens to match is left alone."""
    found = {name for name in sites if _matches(pattern, name)}
    others = [other for other in left if _matches(pattern, other.path)]
    exact = not any(sign in pattern for sign in "*?")
    _refuse([other for other in others if exact or other.linear or not found])
    if not found:
        raise UserError(
            f"sites: no parameter that can be decomposed fits {pattern!r}; there are "
            f"{sorted(sites)}"
        )
    return found


def _refuse(others: Sequence[Left]) -> None:
    """Raise UserError for leaves that were asked for and are no sites, or not only that."""
    if others:
        reasons = "".join(f"\n  {o.path} {list(o.shape)}: {o.reason}" for o in others)
        raise UserError(
            f"these parameters can't be decomposed:{reasons}\nEvery use of a site must be a "
            "product, a convolution or a look-up; choose other sites, or write the network so "
            "that the matrix it multiplies by is itself the parameter"
        )
