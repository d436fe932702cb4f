"""Modules of torch and Hugging Face: converted, attributed, decomposed, and back in torch.

Letters: N examples, C components.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import pytest

_REASON = "needs apd_jax[torch] and transformers: bash launch/test_torch.sh"
torch = pytest.importorskip("torch", reason=_REASON)
pytest.importorskip("transformers", reason=_REASON)

from zoo import oracle  # noqa: E402
from zoo.cases import assert_close, components_of, scores_of, vectors_of  # noqa: E402
from zoo.network import Network  # noqa: E402
from zoo.torch_models import TORCH  # noqa: E402

import apd_jax  # noqa: E402

C, FEW = 3, 3
_QUICK = ("tied_weights",)
every_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in _QUICK else pytest.mark.slow) for n in TORCH]
)


@functools.lru_cache
def converted(name):
    """An entry, its target, components, and a few examples."""
    entry = TORCH[name]()
    target = apd_jax.Target.from_torch(entry.module, entry.inputs, **entry.options)
    few = jax.tree.map(lambda leaf: jnp.asarray(leaf[:FEW].numpy()), entry.inputs)
    return entry, target, components_of(target), few


def own_outputs(entry, module, inputs):
    """What a module gives by itself."""
    keywords = {name: value for name, value in entry.options.items() if name != "output"}
    output = entry.options.get("output")
    arguments = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    with torch.no_grad():
        result = module(*arguments[0], **arguments[1], **keywords)
    return (result if output is None else result[output]).numpy()


@every_model
def test_outputs_and_sites(name):
    entry, target, _, _ = converted(name)
    assert target.conversion_error < 1e-5
    assert len(target.sites) == entry.sites, target.sites
    assert set(target.params) == set(dict(entry.module.named_parameters()))
    assert {site.path for site in target.sites.values()} <= set(entry.module.state_dict())


@every_model
def test_attributions(name):
    _, target, components, few = converted(name)
    sites = {site: found.shape for site, found in target.sites.items()}
    network = Network(target.apply_fn, target.params, few, sites)
    expected = oracle.attributions(network, vectors_of(target, components))
    assert_close(scores_of(target, components, few), expected, 1e-4)


@every_model
def test_all_components_are_the_composed_network(name):
    _, target, components, few = converted(name)
    everything = jnp.ones((FEW, C), bool)
    masked = apd_jax.masked_apply(target, components, few, everything)
    assert_close(masked, apd_jax.composed_apply(target, components, few), 1e-4)


@every_model
def test_decomposed_and_back_in_torch(name):
    entry, target, _, few = converted(name)
    data = jax.tree.map(lambda leaf: leaf.numpy(), entry.inputs)
    options = {"num_components": C, "topk": 1.5, "rank": 1, "steps": 20, "batch_size": 4}
    options["per_position"] = False  # of logits it would be true
    found = apd_jax.decompose(
        target, data, refine={"every": 0}, relative_losses=False, start="random", **options
    )
    mask = jnp.tile(jnp.asarray([1.0, 0.0, 2.0]), (FEW, 1))
    expected = apd_jax.masked_apply(target, found.components, few, mask)
    module = copy.deepcopy(entry.module)
    state = found.to_torch({1: 0.0, 2: 2.0})
    assert set(state) == {site.path for site in target.sites.values()}
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    own = own_outputs(entry, module, jax.tree.map(lambda leaf: leaf[:FEW], entry.inputs))
    assert_close(own, expected, 1e-5)
    assert_close(own, target.apply_fn(found.edited({1: 0.0, 2: 2.0}), few), 1e-5)
