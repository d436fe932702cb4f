#!/usr/bin/env bash
# torch 2.13.0: nn.TransformerEncoderLayer in eval mode reads a mask of floats, such as a bias by
# distance, as one of bool under torch.no_grad(): whatever is not 0 is masked out. Where gradients
# are recorded the numbers are added to the scores, as documented. There is no Python warning.
# Expected: the same outputs either way. Fails if they agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import sys
import warnings

import torch

print("torch", torch.__version__)
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
x = torch.randn(2, 5, 8)  # [batch, positions, width]
places = torch.arange(5)
bias = -0.1 * (places[:, None] - places).abs()  # 0 on the diagonal, -0.4 at most
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with torch.no_grad():
        without = layer(x, src_mask=bias)
        all_but_itself = layer(x, src_mask=bias != 0)
recorded = layer(x, src_mask=bias).detach()


def apart(a, b):
    return float((a - b).abs().max())


print(f"largest difference with and without gradients: {apart(without, recorded):.2f}")
print(f"from a mask of bool that leaves each position itself alone: {apart(without, all_but_itself):.1e}")
print(f"warnings: {len(caught)}")
as_recorded = apart(without, recorded) > 0.1 and apart(without, all_but_itself) < 1e-5
print("as recorded" if as_recorded and not caught else "this has changed")
sys.exit(not as_recorded or bool(caught))
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
