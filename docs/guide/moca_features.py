"""Features of a MOCA encoder in PyTorch, from a file written by `occlude export --layout moca`.

    python moca_features.py MODEL.safetensors TOKENS.safetensors [HEADS]

MODEL   an encoder under the names of the official release (cls_token, pos_embed, blocks.0.attn.qkv.weight ...), or a whole
        training state (`--full`), of which the teacher is taken
TOKENS  written by `occlude features --tokens`: `images` [count, 3, height, width], normalised as in training, and what
        the program made of them: `patches` [count, rows * cols, dim], `global` [count, dim]
HEADS   attention heads, `method.encoder.heads`: no tensor tells them. Heads of 64 numbers where absent, as in ViT-S/B/L

Needs: pip install torch safetensors
"""

import math
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

TEACHER = "encoder_teacher."
EPS = 1e-6


class Block(nn.Module):
    def __init__(self, dim, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x):
        """[b, n, d] -> [b, n, d]"""
        parts = self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [b, heads, n, size]
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Encoder(nn.Module):
    """Its parameters have the names of the file."""

    def __init__(self, weights, heads=None):
        super().__init__()
        dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        heads = heads or max(1, dim // 64)
        if dim % heads:
            sys.exit(f"{heads} heads do not divide a width of {dim}: give HEADS, as in method.encoder.heads")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", torch.zeros(weights["pos_embed"].shape))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, stride=patch)})
        self.blocks = nn.ModuleList(Block(dim, hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.load_state_dict(weights)

    def forward(self, images):
        """[b, 3, h, w] -> [b, 1 + rows * cols, d]: the class token, then the patches row by row"""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        if patches.shape[1] + 1 != self.pos_embed.shape[1]:
            sys.exit(f"{patches.shape[1]} patches for a table of {self.pos_embed.shape[1] - 1}: give images of that size")
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


def encoder_in(weights):
    """The encoder of a file; the teacher's where it is a whole training state."""
    if any(name.startswith(TEACHER) for name in weights):
        weights = {name[len(TEACHER) :]: v for name, v in weights.items() if name.startswith(TEACHER)}
    if "blocks.0.attn.qkv.weight" not in weights:
        sys.exit("blocks.0.attn.qkv.weight is missing: not a file of `occlude export --layout moca`")
    return weights


def difference(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    weights, theirs = encoder_in(load_file(sys.argv[1])), load_file(sys.argv[2])
    heads = int(sys.argv[3]) if len(sys.argv) == 4 else None
    rounded = any(v.dtype != torch.float32 for v in weights.values())
    model = Encoder({name: v.float() for name, v in weights.items()}, heads)
    with torch.no_grad():
        tokens = model(theirs["images"].float())
    patches = tokens[:, 1:]
    # What stands for an image: method.global_token.
    whole = {"avg": patches.mean(dim=1), "cls": tokens[:, 0]}
    kind = min(whole, key=lambda kind: difference(whole[kind], theirs["global"]))
    for name, ours in [("patches", patches), ("global", whole[kind])]:
        found = difference(ours, theirs[name])
        told = f' (method.global_token = "{kind}")' if name == "global" else ""
        print(f"{name} {tuple(ours.shape)}: largest relative difference {found:.1e}{told}")
        if not math.isfinite(found) or (found > 2e-5 and not rounded):
            sys.exit(f"{name}: too large a difference (other HEADS?)")
    if rounded:
        print("the file holds rounded weights: export with --dtype f32 to compare closely")


if __name__ == "__main__":
    main()
