"""Features of a CAPI encoder in PyTorch, from a file written by `occlude export --layout capi`.

    python capi_features.py MODEL.safetensors TOKENS.safetensors

MODEL   names as in the official release: backbone.encoder.blocks.0.residual1.fn.q_proj.weight ...
TOKENS  written by `occlude features --tokens`: `images` [count, 3, height, width], normalised as in training, and what
        the program made of them: `patches` [count, rows * cols, dim], `global` [count, width]

Reads models with rotary positions, registers and a predictor of kind `cross`: all published recipes.

Needs: pip install torch safetensors
"""

import math
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


CROSS = 'method.predictor.kind = "cross"'
NEEDED = {
    "registers": "method.encoder.registers above 0",
    "encoder.blocks.0.residual1.fn.rope.freqs": 'method.encoder.position = "rope"',
    "decoder.blocks.0.residual1.fn.q_proj.weight": CROSS,
}


class Capi:
    """Encoder and first predictor block; the head size is read off the frequency tables."""

    def __init__(self, weights):
        prefix = "backbone."
        self.weights = {k[len(prefix) :]: v.float() for k, v in weights.items() if k.startswith(prefix)}
        for name, setting in NEEDED.items():
            if name not in self.weights:
                sys.exit(f"{prefix}{name} is missing: this script reads models with {setting} only")
        if "decoder.embed.weight" in self.weights:
            sys.exit(f"{prefix}decoder.embed.weight is there: this script reads models with {CROSS} only")
        self.depth = 1 + max(int(k.split(".")[2]) for k in self.weights if k.startswith("encoder.blocks."))

    def encode(self, images):
        """images [b, 3, h, w] -> registers [b, r, d], patches [b, n, d], coordinates of both [b, r + n, 2]"""
        weight, bias = self.weights["patch_embed.weight"], self.weights["patch_embed.bias"]
        tokens = F.conv2d(images, weight, bias, stride=weight.shape[-1])
        batch, _, rows, cols = tokens.shape
        patches = tokens.flatten(2).transpose(1, 2)
        registers = self.weights["registers"].expand(batch, -1, -1)
        coords = torch.cat([register_coords(registers.shape[1]), patch_coords(rows, cols)]).expand(batch, -1, -1)
        x = torch.cat([registers, patches], dim=1)
        for i in range(self.depth):
            x = self.block(f"encoder.blocks.{i}", x, coords)
        x = rms_norm(x)
        return x[:, : registers.shape[1]], x[:, registers.shape[1] :], coords

    def pooled(self, context, coords, count):
        """Predictor pooling: every patch position queried through the first predictor block, averaged."""
        queries = self.weights["mask_token"].expand(context.shape[0], count, -1)
        x = self.block("decoder.blocks.0", queries, coords[:, -count:], context, coords)
        return rms_norm(x).mean(dim=1)

    def block(self, name, x, coords, context=None, context_coords=None):
        w = lambda key: self.weights[f"{name}.{key}"]
        normed = rms_norm(x, w("residual1.norm.weight"))
        context, context_coords = (normed, coords) if context is None else (context, context_coords)
        table = w("residual1.fn.rope.freqs")
        q = place(split(normed @ w("residual1.fn.q_proj.weight").T, table), coords, table)
        k = place(split(context @ w("residual1.fn.k_proj.weight").T, table), context_coords, table)
        v = split(context @ w("residual1.fn.v_proj.weight").T, table)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + attended @ w("residual1.fn.proj.weight").T
        hidden = F.gelu(rms_norm(x, w("residual2.norm.weight")) @ w("residual2.fn.fc1.weight").T)
        return x + hidden @ w("residual2.fn.fc2.weight").T


def rms_norm(x, weight=None, eps=1e-5):
    x = x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return x if weight is None else x * weight


def split(x, table):
    """[b, n, heads * size] -> [b, heads, n, size]"""
    return x.unflatten(-1, (-1, table.shape[1])).transpose(1, 2)


def place(x, coords, table):
    """The position encoding of CAPI: the two members of a pair use different angles, so it is not a rotation."""
    angle = (coords @ table).unsqueeze(1)  # [b, 1, n, size]
    low, high = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-high, low], dim=-1) * angle.sin()


def patch_coords(rows, cols):
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, cols), indexing="ij")
    return torch.stack([y, x], dim=-1).reshape(-1, 2)


def register_coords(count):
    """Evenly around the edge of the unit square, `count` divisible by 4."""
    side = [i / (count // 4) for i in range(count // 4)]
    edge = [(c, 0.0) for c in side] + [(1.0, c) for c in side] + [(1 - c, 1.0) for c in side] + [(0.0, 1 - c) for c in side]
    return torch.tensor(edge).reshape(-1, 2)


def main():
    weights, theirs = load_file(sys.argv[1]), load_file(sys.argv[2])
    rounded = any(v.dtype != torch.float32 for v in weights.values())
    model = Capi(weights)
    with torch.no_grad():
        registers, patches, coords = model.encode(theirs["images"].float())
        pooled = model.pooled(torch.cat([registers, patches], dim=1), coords, patches.shape[1])
    for name, ours in [("patches", patches), ("global", pooled)]:
        difference = ((ours - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        print(f"{name} {tuple(ours.shape)}: largest relative difference {difference:.1e}")
        if not math.isfinite(difference) or (difference > 2e-5 and not rounded):
            hint = f" (a predictor of another kind? `global` needs {CROSS})" if name == "global" else ""
            sys.exit(f"{name}: too large a difference{hint}")
    if rounded:
        print("the file holds rounded weights: export with --dtype f32 to compare closely")


if __name__ == "__main__":
    main()
