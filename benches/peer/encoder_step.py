"""One training step of the encoder alone in PyTorch: what `cargo xtask bench step --method encoder --peer` compares with.

    python encoder_step.py FOLDER --precision f32|bf16 --threads N

A plain pre-norm Vision Transformer over all patches of a batch, learned positions, RMS norms, no biases in the blocks; the
mean of the normed tokens through a linear head into cross-entropy; AdamW. As a careful PyTorch user would write it: one
packed projection, SDPA, fused AdamW, eager mode. `bf16` is autocast: f32 weights, moments, norms and loss, bf16 products.

FOLDER   written by `bench-step`:
         weights.safetensors  encoder.*, head.*
         batch.safetensors    images [batch, 3, height, width], labels [batch]
         step.json            everything that shapes do not say

A server: see `serving.py`. Its loss is "cross_entropy".  Needs: pip install torch numpy safetensors
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from serving import serve
from torch import nn

NORM_EPS = 1e-5


def param(*tensors):
    """A parameter of its own memory; several tensors are packed along their first axis."""
    return nn.Parameter(torch.cat(tensors).contiguous() if len(tensors) > 1 else tensors[0].clone())


def rms_norm(x, weight=None):
    return F.rms_norm(x, x.shape[-1:], weight, NORM_EPS)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, weights, name, heads):
        super().__init__()
        w = lambda key: weights[f"{name}.{key}.weight"]
        self.heads = heads
        self.norm1, self.norm2 = param(w("residual1.norm")), param(w("residual2.norm"))
        self.qkv = param(*(w(f"residual1.fn.{part}_proj") for part in "qkv"))
        self.proj = param(w("residual1.fn.proj"))
        self.fc1, self.fc2 = param(w("residual2.fn.fc1")), param(w("residual2.fn.fc2"))

    def forward(self, x):
        batch, tokens, _ = x.shape
        packed = F.linear(rms_norm(x, self.norm1), self.qkv).view(batch, tokens, 3, self.heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + F.linear(seen, self.proj)
        return x + F.linear(F.gelu(F.linear(rms_norm(x, self.norm2), self.fc1)), self.fc2)


class Encoder(nn.Module):
    def __init__(self, weights, heads):
        super().__init__()
        self.patch_weight = param(weights["encoder.patch_embed.weight"].flatten(1))
        self.patch_bias = param(weights["encoder.patch_embed.bias"])
        self.positions = param(weights["encoder.pos_embed"])
        name = "encoder.encoder.blocks"
        depth = 1 + max(int(key.split(".")[3]) for key in weights if key.startswith(name))
        self.blocks = nn.ModuleList(Block(weights, f"{name}.{i}", heads) for i in range(depth))
        self.head_weight, self.head_bias = param(weights["head.weight"]), param(weights["head.bias"])

    def forward(self, patches):
        """patches [batch, n, pixels] -> scores [batch, classes]"""
        x = F.linear(patches, self.patch_weight, self.patch_bias) + self.positions
        for block in self.blocks:
            x = block(x)
        return F.linear(rms_norm(x).mean(1), self.head_weight, self.head_bias)


class Step:
    """The state of a training run, and its step."""

    def __init__(self, folder, precision):
        settings = json.loads((folder / "step.json").read_text())
        self.patch, self.bf16 = settings["patch"], precision == "bf16"
        self.model = Encoder(load_file(folder / "weights.safetensors"), settings["heads"])
        # Matrices and positions decay, biases do not; norm weights do, as in the other program.
        biases = [self.model.patch_bias, self.model.head_bias]
        others = [p for p in self.model.parameters() if all(p is not bias for bias in biases)]
        groups = [{"params": others, "weight_decay": settings["weight_decay"]}, {"params": biases, "weight_decay": 0.0}]
        adamw = {"lr": settings["lr"], "betas": tuple(settings["betas"]), "eps": settings["eps"], "fused": True}
        self.optimizer = torch.optim.AdamW(groups, **adamw)
        batch = load_file(folder / "batch.safetensors")
        self.images, self.labels = batch["images"].clone(), batch["labels"].clone()

    def patch_rows(self):
        """The pixels of every patch, channel by channel.  -> [batch, patches, 3 * patch * patch]"""
        batch, _, height, width = self.images.shape
        rows, cols = height // self.patch, width // self.patch
        x = self.images.view(batch, 3, rows, self.patch, cols, self.patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, -1)

    def loss(self):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            scores = self.model(self.patch_rows())
        return F.cross_entropy(scores.float(), self.labels)

    def train(self):
        """One step. -> losses"""
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"cross_entropy": loss.item()}

    @torch.no_grad()
    def losses(self):
        return {"cross_entropy": self.loss().item()}

    def trained_numbers(self):
        return sum(p.numel() for p in self.model.parameters())


if __name__ == "__main__":
    serve(Step)
