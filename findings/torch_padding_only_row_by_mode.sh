#!/usr/bin/env bash
# torch 2.11.0: attention over a sample that is padding only is 0, finite or NaN, by flags that should not matter.
#
# Expected: a batch with one sample whose key_padding_mask is True everywhere (an absent modality, an empty caption)
# gives one answer for that sample, whichever it is, in training, in evaluation and with gradients off.
# Seen, all on CPU and for the same weights: MultiheadAttention gives NaN with need_weights=True, which is its default;
# with need_weights=False it gives the output projection's bias (here 0) in training and in evaluation with gradients,
# and NaN in evaluation under no_grad. TransformerEncoderLayer is finite in training and in evaluation with gradients,
# and NaN in evaluation under no_grad. TransformerEncoder over the same layer is finite, and 0 in evaluation under
# no_grad. scaled_dot_product_attention itself gives 0. So a model trains without a NaN, and its embeddings of such a
# sample are NaN in deployment; a test that forgets no_grad sees nothing. Whoever has such samples must drop or overwrite
# them, or call scaled_dot_product_attention.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import warnings

import torch
from torch.nn.functional import scaled_dot_product_attention

warnings.filterwarnings("ignore")
torch.manual_seed(0)
tokens = torch.randn(2, 4, 16)
padding = torch.tensor([[False] * 4, [True] * 4])
attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
encoder = torch.nn.TransformerEncoder(layer, 2)
calls = {
    "MultiheadAttention": lambda: attention(tokens, tokens, tokens, key_padding_mask=padding)[0],
    "MultiheadAttention, need_weights=False": lambda: attention(
        tokens, tokens, tokens, key_padding_mask=padding, need_weights=False
    )[0],
    "TransformerEncoderLayer": lambda: layer(tokens, src_key_padding_mask=padding),
    "TransformerEncoder": lambda: encoder(tokens, src_key_padding_mask=padding),
}


def kind(output):
    if output.isnan().any():
        return "NaN"
    return "0" if not output.any() else "finite"


print("torch", torch.__version__)
seen = {}
for name, call in calls.items():
    for training in (True, False):
        for gradients in (True, False):
            for module in (attention, layer, encoder):
                module.train(training)
            with torch.set_grad_enabled(gradients):
                output = call()
            assert output[0].isfinite().all()
            mode = ("train" if training else "eval") + (", gradients" if gradients else ", no_grad")
            seen[name, mode] = kind(output[1])
    print(f"{name}:", {mode: seen[key, mode] for key, mode in seen if key == name})
query = torch.randn(1, 2, 4, 8)
nothing = scaled_dot_product_attention(query, query, query, attn_mask=torch.zeros(4, 4, dtype=torch.bool))
print("scaled_dot_product_attention:", kind(nothing))
modes = ("train, gradients", "train, no_grad", "eval, gradients", "eval, no_grad")
assert [seen["MultiheadAttention", mode] for mode in modes] == ["NaN"] * 4
assert [seen["MultiheadAttention, need_weights=False", mode] for mode in modes] == ["0", "0", "0", "NaN"]
assert [seen["TransformerEncoderLayer", mode] for mode in modes] == ["finite", "finite", "finite", "NaN"]
assert [seen["TransformerEncoder", mode] for mode in modes] == ["finite", "finite", "finite", "0"]
assert kind(nothing) == "0"
PY
"$here/venv/bin/python" "$here/case.py"
