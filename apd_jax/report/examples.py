"""Examples on a page: as short texts, and as pictures where they are images.

Letters: N examples, h height, w width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.data.tokens import tokens_of
from apd_jax.errors import UserError
from apd_jax.sites import PyTree, leaf_name

Decode = Callable[[np.ndarray], str]

_MAX_WHOLE, _MAX_OTHERS = 16, 8  # numbers of an example that are written next to its row
_TOKENS_BEFORE, _TOKENS_AFTER = 24, 8  # of a position, that are drawn as text
_MAX_PIXELS = 512 * 512
_MAX_STRIP = 4096  # entries of a vector that is drawn as a strip or a square
_CHANNELS = (1, 3, 4)  # grey, red-green-blue, and the same with opacity


class Pictures(NamedTuple):
    """Examples as pictures, or the reason why they are not drawn.

    Attributes:
      images: [N, h, w], or [N, h, w, 3 or 4] colours in [0, 1]; None if they are not drawn.
      why: a sentence on how colours were scaled, or why there are no pictures; may be empty.
    """

    images: np.ndarray | None
    why: str = ""


def as_pictures(x: PyTree) -> Pictures:
    """Examples as pictures: images [N, h, w], HWC or CHW; vectors as squares or strips.

    Numbers are floating or 8-bit. Of images in which both ends could be channels, the last axis is.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
    if len(leaves) != 1:
        return Pictures(None, f"an example is {len(leaves)} arrays, not one image")
    array = leaves[0]
    if array.dtype != np.uint8 and not jnp.issubdtype(array.dtype, jnp.floating):
        return Pictures(None, f"they are {array.dtype}, not floating or 8-bit numbers")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            return Pictures(None, "they hold NaN or infinity")
    if array.ndim == 2:
        return _vectors(array)
    if array.ndim == 4:
        return _with_channels(array)
    if array.ndim != 3:
        return Pictures(None, f"an example has shape {array.shape[1:]}, which is no image")
    return _sized(array)


def _vectors(array: np.ndarray) -> Pictures:
    width = array.shape[1]
    side = int(round(width**0.5))
    if width > _MAX_STRIP:
        return Pictures(None, f"a vector of {width:,} entries is too long to draw")
    if side >= 6 and side * side == width:
        return Pictures(array.reshape(-1, side, side))
    if array.dtype == np.uint8:
        return Pictures(None, "vectors of whole numbers are no images")
    return Pictures(array[:, None])


def _with_channels(array: np.ndarray) -> Pictures:
    if array.shape[-1] not in _CHANNELS:
        if array.shape[1] not in _CHANNELS:
            shape = array.shape[1:]
            return Pictures(
                None, f"an example has shape {shape}, with no axis of 1, 3 or 4 colours"
            )
        array = np.moveaxis(array, 1, -1)
    if array.shape[-1] == 1:
        return _sized(array[..., 0])
    if array.dtype == np.uint8:
        return _sized(array.astype(np.float32) / 255)
    lowest, highest = float(array.min()), float(array.max())
    if lowest >= 0 and highest <= 1:
        return _sized(array)
    scaled = (array - lowest) / max(highest - lowest, 1e-30)
    how = f"Colours are scaled: {lowest:.3g} is drawn as 0 and {highest:.3g} as 1."
    return _sized(scaled, how)


def _sized(images: np.ndarray, how: str = "") -> Pictures:
    height, width = images.shape[1:3]
    if height * width > _MAX_PIXELS:
        return Pictures(None, f"images of {height} x {width} pixels are too large to draw")
    return Pictures(images, how)


def as_text(x: PyTree, example: int, *positions: int) -> str:
    """Write an example in short: up to 16 whole numbers, or up to 8 others with two digits.

    Of a longer sequence of whole numbers those around the position are shown, with the position in
    brackets, unless positions have several axes. Several arrays are preceded by their names. Empty
    if no array is short enough.
    """
    position = positions[0] if len(positions) == 1 else None
    leaves = jax.tree_util.tree_leaves_with_path(x)
    texts = []
    for path, leaf in leaves:
        values = np.asarray(leaf[example])
        if values.dtype.kind in "biu" and (values.ndim == 1 or values.size <= _MAX_WHOLE):
            shown = _whole_numbers(values, position)
        elif values.dtype.kind not in "biu" and values.size <= _MAX_OTHERS:
            shown = [f"{value:.2g}" for value in values.ravel().tolist()]
        else:
            continue
        texts.append(" ".join([leaf_name(path)] * (len(leaves) > 1) + shown))
    return "; ".join(texts)


def _whole_numbers(values: np.ndarray, position: int | None) -> list[str]:
    entries = [str(int(value)) for value in values.ravel()]
    if position is not None and position < len(entries):
        entries[position] = f"[{entries[position]}]"
    start = max(0, min((position or 0) - _MAX_WHOLE // 2, len(entries) - _MAX_WHOLE))
    shown = entries[start : start + _MAX_WHOLE]
    return ["…"] * (start > 0) + shown + ["…"] * (start + _MAX_WHOLE < len(entries))


def check_decode(x: PyTree, decode: Decode) -> None:
    """Raise UserError unless the inputs have tokens that `decode` makes text of."""
    tokens = _tokens(x)[0][:1]
    try:
        text = decode(tokens)
    except Exception as error:
        raise UserError(
            f"decode must give the text of tokens, an array [T] of whole numbers; for {tokens!r} "
            f"it raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(text, str):
        raise UserError(
            f"decode must give the text of tokens [T] as a string, got a {type(text).__name__}"
        )


def decoded(
    x: PyTree, decode: Decode, example: int, position: int | None = None
) -> tuple[str, str, str]:
    """The tokens of an example as text: before the position, at it, and after it.

    Without a position the first tokens are all before it.

    Args:
      x: inputs; of their arrays of whole numbers [N, T], one holds tokens.
      decode: gives the text of tokens [T].
      example: number of the example.
      position: number of the position.
    """
    tokens = _tokens(x)[example]
    if position is None:
        end = _TOKENS_BEFORE + _TOKENS_AFTER
        return decode(tokens[:end]) + "…" * (len(tokens) > end), "", ""
    start, end = max(0, position - _TOKENS_BEFORE), position + 1 + _TOKENS_AFTER
    before = "…" * (start > 0) + (decode(tokens[start:position]) if position > start else "")
    after = decode(tokens[position + 1 : end]) if position + 1 < len(tokens) else ""
    return before, decode(tokens[position : position + 1]), after + "…" * (end < len(tokens))


def _tokens(x: PyTree) -> np.ndarray:
    found = tokens_of(x)
    if found is None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x)]
        given = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
        raise UserError(
            f"decode= needs an input of tokens, whole numbers [N, T], got {given}: leave decode "
            "out, or give the tokens as integers"
        )
    return found
