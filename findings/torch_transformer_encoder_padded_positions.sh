#!/usr/bin/env bash
# torch 2.13.0: nn.TransformerEncoder in eval mode with src_key_padding_mask gives exactly 0 at padded
# positions under torch.no_grad(), and other numbers where gradients are recorded (there it runs
# without nested tensors). Expected: the same outputs either way, up to rounding. What pools or
# compares all positions differs between the two. Fails if padded positions agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import sys
import warnings

import torch

warnings.simplefilter("ignore")  # nested tensors are a prototype
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
encoder = torch.nn.TransformerEncoder(layer, 1).eval()
x = torch.randn(2, 5, 8)
padded = torch.zeros(2, 5, dtype=torch.bool)
padded[0, 3:] = True
with torch.no_grad():
    without = encoder(x, src_key_padding_mask=padded)
recorded = encoder(x, src_key_padding_mask=padded).detach()
apart = (without - recorded).abs().amax(-1)
print("torch", torch.__version__)
print("largest difference at positions that count:", f"{apart[~padded].max():.1e}")
print("at padded positions:", f"{apart[padded].max():.2f}")
print("largest padded output without gradients:", without[padded].abs().max().item())
as_recorded = apart[~padded].max() < 1e-5 and apart[padded].max() > 0.1 and not without[padded].any()
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
