"""Push the tangents of all components through a linearised network, reassociating products.

At its site the tangent of a component is low-rank, `(x U_c) V_c`, and on its way to the output it
is multiplied by fixed matrices: `((x U_c) V_c) W`. JAX would form the tangent [B, d] of every
component first. Here it is kept as a sum of terms `coefficients · basis`, and a fixed matrix is
multiplied into the basis, once for all examples, where that is cheaper than into the B tangents.
The sum is formed only where the network does something else, such as the mask of a ReLU.
Widths precede the batch, [C, d, B, ...], so that products and sums over d run along B.
Letters: B batch, C components, r rank of a term, d width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core


class Tangent(NamedTuple):
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

    def times(self, matrix: jax.Array) -> "Tangent":
        """Multiply by a fixed [d, d'] matrix, on the side where it costs less.

        Into the basis, `(c · b) W = c · (b W)`: the coefficients are multiplied once more when the
        sum is formed. Into the tangents, `(c · b) W`: the sum is formed now, and W becomes the
        basis of its entries, which all components share.
        """
        if self.basis is None:
            return Tangent(self.coefficients, matrix[None])
        rows = self.coefficients.size // self.coefficients.shape[1]
        into_basis = self.basis.size * matrix.shape[1] + self.coefficients.size * matrix.shape[1]
        into_tangents = self.coefficients.size * matrix.shape[0] + rows * matrix.size
        if into_basis <= into_tangents:
            flat = self.basis.reshape(-1, self.basis.shape[-1]) @ matrix
            return Tangent(self.coefficients, flat.reshape(*self.basis.shape[:-1], -1))
        return Tangent(self.dense(), matrix[None])

    def scale(self, scalar: Any) -> "Tangent":
        """Multiply by a scalar."""
        return self._replace(coefficients=self.coefficients * scalar)


Terms = tuple[Tangent, ...]


def _dense(terms: Terms) -> jax.Array:
    """Form the tangents [C, d, B, ...], with one product for all terms that have a basis."""
    formed = [term.coefficients for term in terms if term.basis is None]
    factored = [(term.coefficients, term.basis) for term in terms if term.basis is not None]
    if factored:
        count = factored[0][0].shape[0]
        # A shared basis is broadcast to every component too: contracting it without the axis C
        # would put the axes of the product in another order, and transpose all tangents.
        bases = [jnp.broadcast_to(basis, (count, *basis.shape[1:])) for _, basis in factored]
        basis = jnp.concatenate(bases, axis=1)
        coefficients = jnp.concatenate([own for own, _ in factored], axis=1)
        formed.append(jnp.einsum("crd,cr...->cd...", basis, coefficients))
    total = formed[0]
    for tangents in formed[1:]:
        total = total + tangents
    return total


def _is_terms(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Tangent)


def _scale(terms: Terms, scalar: Any) -> Terms:
    return tuple(term.scale(scalar) for term in terms)


def _widths_first(fixed: jax.Array) -> jax.Array:
    """A fixed value [B, ..., d] in the layout of the tangents, [d, B, ...]."""
    return jnp.moveaxis(fixed, -1, 0)


def widths_second(tangents: jax.Array) -> jax.Array:
    """Tangents [C, B, ..., d] in the layout [C, d, B, ...]; those of numbers, [C], as they are."""
    return tangents if tangents.ndim < 2 else jnp.moveaxis(tangents, -1, 1)


def _widths_last(tangents: jax.Array) -> jax.Array:
    return tangents if tangents.ndim < 2 else jnp.moveaxis(tangents, 1, -1)


# A linear program adds tangents only to tangents. A fixed side can only be a zero that stands for a
# missing tangent: the rule declines, and `_evaluate` treats it as JAX does.
def _add(eqn, left, right):
    return left + right if _is_terms(left) and _is_terms(right) else None


def _subtract(eqn, left, right):
    return left + _scale(right, -1) if _is_terms(left) and _is_terms(right) else None


# In a linear program one side of a product is fixed. A scalar is multiplied into the coefficients,
# and the sum stays unformed. Any other array differs by entry of the tangents, as the derivative of
# a ReLU does, so that the sum has to be formed.
def _multiply(eqn, left, right):
    terms, fixed = (left, right) if _is_terms(left) else (right, left)
    if np.ndim(fixed) == 0:
        return _scale(terms, fixed)
    return (Tangent(_dense(terms) * _widths_first(fixed), None),)


# `jnp.where` and the derivative of a ReLU become `select_n`. A scalar condition has no batch axis
# to move and is left to JAX. A fixed case is the same for all components, so it gets their axis.
def _select(eqn, which, *cases):
    if np.shape(which) != eqn.outvars[0].aval.shape:
        return None
    tangents = [_dense(case) if _is_terms(case) else _widths_first(case)[None] for case in cases]
    shape = jnp.broadcast_shapes(*(tangent.shape for tangent in tangents))
    which = jnp.broadcast_to(_widths_first(which), shape)
    return (
        Tangent(jax.lax.select_n(which, *(jnp.broadcast_to(t, shape) for t in tangents)), None),
    )


# Only `tangent @ matrix` keeps the terms. A batch axis would mean another matrix for every example;
# with the matrix on the left, or another axis contracted, it is not a product with the basis.
def _matrix_product(eqn, left, right):
    (contract_left, contract_right), (batch_left, _) = eqn.params["dimension_numbers"]
    if not _is_terms(left) or batch_left or np.ndim(right) != 2:
        return None
    if contract_left != (len(eqn.invars[0].aval.shape) - 1,) or len(contract_right) != 1:
        return None
    matrix = right if contract_right == (0,) else right.T
    return tuple(term.times(matrix) for term in left)


# How primitives act on terms without forming the sum. A rule returns None where it does not apply.
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
    """Evaluate one equation of the linear program on fixed values and terms."""
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
    # Any other primitive of a linear program is linear in the tangents too: it is applied to the
    # formed tangents of one component at a time, in the layout of the network.
    dense = [_widths_last(_dense(v)) if _is_terms(v) else v for v in inputs]
    axes = [0 if _is_terms(value) else None for value in inputs]
    bind = jax.vmap(lambda *args: eqn.primitive.bind(*args, **params), in_axes=axes)
    out = bind(*dense)
    outs = out if eqn.primitive.multiple_results else [out]
    return [(Tangent(widths_second(o), None),) for o in outs]


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
    linear_map: Callable[[Any], jax.Array], example: Any, tangents: dict[Any, Tangent]
) -> jax.Array:
    """Apply a linear map to the tangents of all components.

    The result equals `jax.vmap(linear_map)` on the formed tangents, up to rounding.

    Args:
      linear_map: linear function of a dictionary with the keys of `tangents`.
      example: an input of `linear_map`, of which only the shapes are used.
      tangents: for every entry of the dictionary, the tangents of the C components as a term.

    Returns:
      [C, O, B], the map's value for every component.
    """
    closed = jax.make_jaxpr(linear_map)(example)
    order: Any = jax.tree.structure(tangents, is_leaf=lambda leaf: isinstance(leaf, Tangent))
    assert order == jax.tree.structure(example)
    leaves = order.flatten_up_to(tangents)
    (out,) = _walk(closed.jaxpr, closed.consts, [(term,) for term in leaves])
    if not _is_terms(out):  # the derivative is zero everywhere, and no tangent reaches the output
        count = leaves[0].coefficients.shape[0]
        return jnp.broadcast_to(_widths_first(out), (count, *_widths_first(out).shape))
    return _dense(out)
