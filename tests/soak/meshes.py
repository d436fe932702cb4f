"""Every case on every mesh, and in two and four processes, against one device.

    python tests/soak/meshes.py

`mesh_test.py` has a part of them: compiling takes a few minutes. Ends with status 1 at the first
loss or mask that differs.
"""

import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import mesh_cases  # noqa: E402
import mesh_test  # noqa: E402

PROCESSES = {2: [1, 2, 1], 4: [1, 2, 2]}


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        mesh_test.finish(mesh_test.start(root / "1.npz", mesh_test.MESHES))
        for count, shape in PROCESSES.items():
            mesh_test.finish(*mesh_test.together(count, root / f"{count}.npz", [shape]))
        alone = np.load(root / "1.npz")
        for count in (1, *PROCESSES):
            for name in mesh_cases.CASES:
                mesh_test.check(np.load(root / f"{count}.npz"), alone, name)
                print(f"{name} in {count} process(es): as on one device")


if __name__ == "__main__":
    main()
