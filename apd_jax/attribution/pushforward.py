"""Push the tangents of all components through a linearised network, products reassociated.

A tangent of a component is low-rank when it is born at a site, `(x U_c) V_c`, and meets fixed
matrices on its way to the output: `((x U_c) V_c) W`. It is kept as a sum of terms
`coefficients · basis`; a fixed matrix is multiplied into the basis where that is cheaper than
into the B tangents, and the sum is only formed where the network is not a fixed matrix.
Widths stand in front of the batch, [C, d, B, ...], so that products and sums over d run along B.
Letters: B batch, C components, r rank of a term, d width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


class Term(NamedTuple):
    """One summand of the C tangents.

    Attributes:
      coefficients: [C, r, B, ...].
      basis: [C, r, d], [1, r, d] where all components share it, or None for the identity.
    """

    coefficients: jax.Array
    basis: jax.Array | None

    def dense(self) -> jax.Array:
        """Form the tangents [C, d, B, ...]."""
        return _dense((self,))

    def times(self, matrix: jax.Array) -> "Term":
        """Multiply by a fixed [d, d'] matrix, on the side where it costs less."""
        if self.basis is None:
            return Term(self.coefficients, matrix[None])
        rows = self.coefficients.size // self.coefficients.shape[1]
        into_basis = self.basis.size * matrix.shape[1] + self.coefficients.size * matrix.shape[1]
        into_tangents = self.coefficients.size * matrix.shape[0] + rows * matrix.size
        if into_basis <= into_tangents:
            flat = self.basis.reshape(-1, self.basis.shape[-1]) @ matrix
            return Term(self.coefficients, flat.reshape(*self.basis.shape[:-1], -1))
        return Term(self.dense(), matrix[None])

    def scale(self, factor: Any) -> "Term":
        """Multiply by a scalar."""
        return self._replace(coefficients=self.coefficients * factor)


Terms = tuple[Term, ...]


def _dense(terms: Terms) -> jax.Array:
    """Form the tangents [C, d, B, ...]: all terms that have a basis in one product."""
    formed = [term.coefficients for term in terms if term.basis is None]
    factored = [term for term in terms if term.basis is not None]
    if factored:
        count = factored[0].coefficients.shape[0]
        # Shared bases too are given to every component: the product then needs no transposing.
        bases = [jnp.broadcast_to(t.basis, (count, *t.basis.shape[1:])) for t in factored]
        basis = jnp.concatenate(bases, axis=1)
        coefficients = jnp.concatenate([t.coefficients for t in factored], axis=1)
        formed.append(jnp.einsum("crd,cr...->cd...", basis, coefficients))
    total = formed[0]
    for tangents in formed[1:]:
        total = total + tangents
    return total


def _is_terms(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Term)


def _scale(terms: Terms, factor: Any) -> Terms:
    return tuple(term.scale(factor) for term in terms)


def _widths_first(fixed: jax.Array) -> jax.Array:
    """A fixed value [B, ..., d] in the layout of the tangents, [d, B, ...]."""
    return jnp.moveaxis(fixed, -1, 0)


def widths_second(tangents: jax.Array) -> jax.Array:
    """Tangents [C, B, ..., d] in the layout [C, d, B, ...]; those of numbers, [C], as they are."""
    return tangents if tangents.ndim < 2 else jnp.moveaxis(tangents, -1, 1)


def _widths_last(tangents: jax.Array) -> jax.Array:
    return tangents if tangents.ndim < 2 else jnp.moveaxis(tangents, 1, -1)


# A linear program adds tangents to tangents alone; a fixed side would be one that forgot its own
# tangent, a zero, which `_evaluate` then treats as JAX does.
def _add(eqn, left, right):
    return left + right if _is_terms(left) and _is_terms(right) else None


def _subtract(eqn, left, right):
    return left + _scale(right, -1) if _is_terms(left) and _is_terms(right) else None


# Linear: one side is fixed. A scalar goes into the coefficients, and the sum stays unformed; any
# other factor differs by entry, as a ReLU's derivative does, and no basis outlives it.
def _multiply(eqn, left, right):
    terms, factor = (left, right) if _is_terms(left) else (right, left)
    if np.ndim(factor) == 0:
        return _scale(terms, factor)
    return (Term(_dense(terms) * _widths_first(factor), None),)


# The way of `jnp.where` and of a ReLU's derivative. A scalar choice has no batch to move and is
# left to JAX; a fixed case is the same for all components, so it gets their axis.
def _select(eqn, which, *cases):
    if np.shape(which) != eqn.outvars[0].aval.shape:
        return None
    tangents = [_dense(case) if _is_terms(case) else _widths_first(case)[None] for case in cases]
    shape = jnp.broadcast_shapes(*(tangent.shape for tangent in tangents))
    which = jnp.broadcast_to(_widths_first(which), shape)
    return (Term(jax.lax.select_n(which, *(jnp.broadcast_to(t, shape) for t in tangents)), None),)


# Only `tangent @ matrix` keeps the terms: a batch axis would be another matrix for every example,
# a matrix on the left or another axis of the tangent no product with the basis.
def _matrix_product(eqn, left, right):
    (contract_left, contract_right), (batch_left, _) = eqn.params["dimension_numbers"]
    if not _is_terms(left) or batch_left or np.ndim(right) != 2:
        return None
    if contract_left != (len(eqn.invars[0].aval.shape) - 1,) or len(contract_right) != 1:
        return None
    matrix = right if contract_right == (0,) else right.T
    return tuple(term.times(matrix) for term in left)


# How a primitive acts on terms without forming them. A rule gives None where it does not apply.
_RULES: dict[str, Callable] = {
    "add": _add,
    "add_any": _add,
    "sub": _subtract,
    "neg": lambda eqn, terms: _scale(terms, -1),
    "mul": _multiply,
    "select_n": _select,
    "copy": lambda eqn, terms: terms,
    "dot_general": _matrix_product,
}


def _evaluate(eqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """One equation of the linear program on fixed values and terms."""
    if eqn.primitive.name in ("jit", "pjit", "closed_call"):
        inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
        return _walk(inner.jaxpr, inner.consts, inputs)
    params = eqn.primitive.get_bind_params(eqn.params)
    if not any(_is_terms(value) for value in inputs):
        out = eqn.primitive.bind(*inputs, **params)
        return out if eqn.primitive.multiple_results else [out]
    rule = _RULES.get(eqn.primitive.name)
    result = rule(eqn, *inputs) if rule else None
    if result is not None:
        return [result]
    # Anything else is linear too: it takes the formed tangents one by one, in the usual layout.
    dense = [_widths_last(_dense(v)) if _is_terms(v) else v for v in inputs]
    axes = [0 if _is_terms(value) else None for value in inputs]
    bind = jax.vmap(lambda *args: eqn.primitive.bind(*args, **params), in_axes=axes)
    out = bind(*dense)
    outs = out if eqn.primitive.multiple_results else [out]
    return [(Term(widths_second(o), None),) for o in outs]


def _walk(jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        outputs = _evaluate(eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def push_forward(
    linear_map: Callable[[Any], jax.Array], example: Any, tangents: dict[Any, Term]
) -> jax.Array:
    """Apply a linear map to the tangents of all components.

    Equal to `jax.vmap(linear_map)` on the formed tangents, up to rounding.

    Args:
      linear_map: a linear function of a dictionary with the keys of `tangents`.
      example: one input of `linear_map` (its shapes are used).
      tangents: for every entry the tangents of the C components as a term.

    Returns:
      [C, O, B], the map's value for every component.
    """
    closed = jax.make_jaxpr(linear_map)(example)
    order = jax.tree.structure(tangents, is_leaf=lambda leaf: isinstance(leaf, Term))
    assert order == jax.tree.structure(example)
    leaves = order.flatten_up_to(tangents)
    (out,) = _walk(closed.jaxpr, closed.consts, [(term,) for term in leaves])
    if not _is_terms(out):  # the outputs don't depend on the sites: a zero, [B, O]
        return jnp.broadcast_to(_widths_first(out), (len(leaves[0].coefficients), *out.shape[::-1]))
    return _dense(out)
