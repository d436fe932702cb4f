"""Memory of a device and collectives of a step on several devices; compiled, not run.

    python -m benchmarks.mesh_memory --config=resid_mlp:1 num_components=5000 rank=8

A row for each mesh. The devices are parts of this machine's CPU; nothing of the state's size is
made. State: what a step takes over from the one before, by the compiled program (its donated
buffers). Temporary: what XLA plans to hold beside it. Collectives: how often each occurs in the
compiled step, and the bytes that all of them give to a device.
"""

import argparse
import ast
import importlib
import math
import os

_MESHES = "1,1,1 1,1,2 1,1,4 1,1,8"


def compiled_step(name: str, changes: dict, shape: tuple[int, ...]):
    """The compiled step of a config's decomposition on a mesh."""
    import jax

    from apd_jax.programs.jax_settings import own_settings
    from apd_jax.run.setup import make_setup
    from apd_jax.runtime import loop, step_programs
    from apd_jax.studies import pretraining
    from apd_jax.training.trainer import Trainer

    module, variant = name.split(":")
    config = importlib.import_module(f"configs.{module}").get_config(variant)
    config.update_from_flattened_dict(changes)
    with own_settings():
        setup = make_setup(config)
        targets = jax.vmap(setup.task.target)(pretraining.init_params(setup.task, setup.seeds))
        trainer = Trainer(setup.settings, targets, setup.task.inputs, setup.seeds, mesh_shape=shape)
        leaves, tree = jax.tree.flatten(trainer.context)
        program = step_programs.chunk(trainer.step, tree)
        state = loop.abstract_state(trainer)
        lowered = program.lower(1, trainer.layout, leaves, state, trainer.seeds, None)
        return lowered.compile()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="resid_mlp:1")
    parser.add_argument("--meshes", default=_MESHES)
    parser.add_argument("changes", nargs="*", help="FIELD=VALUE of the config")
    given = parser.parse_args()
    shapes = [ast.literal_eval(f"({mesh})") for mesh in given.meshes.split()]
    changes = {}
    for change in given.changes:
        field, _, value = change.partition("=")
        try:
            changes[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[field] = value
    os.environ["JAX_NUM_CPU_DEVICES"] = str(max(math.prod(shape) for shape in shapes))
    from apd_jax.programs import counts  # after the number of devices is set

    print("| mesh | state, MB | temporary, MB | collectives | their bytes, MB |")
    print("|---|---:|---:|---|---:|")
    for shape in shapes:
        step = compiled_step(given.config, changes, shape)
        memory = step.memory_analysis()
        found = counts.collectives(step.as_text())
        kinds = ", ".join(f"{number} {kind}" for kind, (number, _) in found.items()) or "none"
        moved = sum(size for _, size in found.values())
        sizes = (memory.alias_size_in_bytes, memory.temp_size_in_bytes)
        state, temporary = (f"{size / 1e6:.1f}" for size in sizes)
        mesh = ",".join(map(str, shape))
        print(f"| {mesh} | {state} | {temporary} | {kinds} | {moved / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
