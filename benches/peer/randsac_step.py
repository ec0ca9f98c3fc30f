"""One whole RandSAC training step in PyTorch: what `cargo xtask bench step --method randsac --peer` compares this project with.

    python randsac_step.py FOLDER --precision f32|bf16 --threads N

Written from the project's specification, as a careful PyTorch user would write it: one packed projection where tokens read
themselves, SDPA with boolean masks that all heads and layers share, fused AdamW, eager mode. Masks are made of the ranks anew
in every step, as segments are drawn anew. `bf16` is autocast: f32 weights, moments, norms and loss, bf16 products.

FOLDER   written by `bench-step`:
         weights.safetensors  the names of the specification, queries, keys and values apart; decoder_blocks.* unless there are
                              two streams, skip.weight with trainable skips, decoder_embed.* where widths differ
         batch.safetensors    images [batch, 3, height, width], ranks [batch, patches]
         step.json            everything that shapes do not say

A server: see `serving.py`. Its loss is "pixels".  Needs: pip install torch numpy safetensors
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from serving import serve
from torch import nn

LAYER_NORM_EPS = 1e-6
PIXEL_EPS = 1e-6


def param(*tensors):
    """A parameter of its own memory; several tensors are packed along their first axis."""
    return nn.Parameter(torch.cat(tensors).contiguous() if len(tensors) > 1 else tensors[0].clone())


class Linear(nn.Module):
    """A linear map, or several that read the same packed into one."""

    def __init__(self, weights, *names):
        super().__init__()
        self.weight = param(*(weights[f"{name}.weight"].flatten(1) for name in names))
        self.bias = param(*(weights[f"{name}.bias"] for name in names))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, weights, name):
        super().__init__()
        self.weight, self.bias = param(weights[f"{name}.weight"]), param(weights[f"{name}.bias"])

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)


class Mlp(nn.Module):
    def __init__(self, weights, name):
        super().__init__()
        self.fc1, self.fc2 = Linear(weights, f"{name}.fc1"), Linear(weights, f"{name}.fc2")

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def split(packed, parts, heads):
    """[batch, tokens, parts * dim] -> parts of [batch, heads, tokens, head dim]"""
    batch, tokens, _ = packed.shape
    return packed.view(batch, tokens, parts, heads, -1).permute(2, 0, 3, 1, 4)


def attend(q, k, v, mask):
    """[batch, heads, tokens, head dim] each, mask [batch, 1, queries, keys]  -> [batch, queries, dim]"""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, weights, name, heads):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(weights, *(f"{name}.{part}" for part in "qkv"))
        self.proj = Linear(weights, f"{name}.proj")

    def forward(self, x, mask):
        return self.proj(attend(*split(self.qkv(x), 3, self.heads), mask))


class CrossAttention(nn.Module):
    def __init__(self, weights, name, heads):
        super().__init__()
        self.heads = heads
        self.q, self.kv = Linear(weights, f"{name}.q"), Linear(weights, f"{name}.k", f"{name}.v")
        self.proj = Linear(weights, f"{name}.proj")

    def forward(self, x, read, mask):
        (q,), (k, v) = split(self.q(x), 1, self.heads), split(self.kv(read), 2, self.heads)
        return self.proj(attend(q, k, v, mask))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, weights, name, heads):
        super().__init__()
        self.norm1, self.attn = LayerNorm(weights, f"{name}.norm1"), SelfAttention(weights, f"{name}.attn", heads)
        self.norm2, self.mlp = LayerNorm(weights, f"{name}.norm2"), Mlp(weights, f"{name}.mlp")

    def forward(self, x, mask):
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class StreamBlock(nn.Module):
    """The same weights for a content stream and a query stream that reads it; tokens of the one lie before those of the other."""

    def __init__(self, weights, name, heads):
        super().__init__()
        self.norm1, self.attn = LayerNorm(weights, f"{name}.norm1"), CrossAttention(weights, f"{name}.attn", heads)
        self.norm2, self.mlp = LayerNorm(weights, f"{name}.norm2"), Mlp(weights, f"{name}.mlp")

    def forward(self, x, mask):
        """x [batch, both, dim], mask [batch, 1, made, content]: as many of the last tokens as it has rows are made."""
        made, content = mask.shape[-2:]
        normed = self.norm1(x)
        x = x[:, -made:] + self.attn(normed[:, -made:], normed[:, :content], mask)
        return x + self.mlp(self.norm2(x))


class Layer(nn.Module):
    """Of the decoder: tokens read each other, then the encoder."""

    def __init__(self, weights, name, heads):
        super().__init__()
        self.norm1, self.own = LayerNorm(weights, f"{name}.norm1"), SelfAttention(weights, f"{name}.self_attn", heads)
        self.norm2, self.cross = LayerNorm(weights, f"{name}.norm2"), CrossAttention(weights, f"{name}.cross_attn", heads)
        self.norm3, self.mlp = LayerNorm(weights, f"{name}.norm3"), Mlp(weights, f"{name}.mlp")

    def forward(self, y, read, content, memory):
        y = y + self.own(self.norm1(y), content)
        y = y + self.cross(self.norm2(y), read, memory)
        return y + self.mlp(self.norm3(y))


def stack(kind, weights, name, heads):
    depth = 1 + max(int(key[len(name) + 1 :].split(".")[0]) for key in weights if key.startswith(f"{name}."))
    return nn.ModuleList(kind(weights, f"{name}.{i}", heads) for i in range(depth))


class Decoded(nn.Module):
    """An encoder, and a decoder that reads its last block or, with trainable skips, a mixture of all for each layer."""

    def __init__(self, weights, settings):
        super().__init__()
        self.table, self.decoder_table = weights["pos_embed"].clone(), weights["decoder_pos_embed"].clone()
        self.patch_embed = Linear(weights, "patch_embed.proj")
        self.blocks, self.norm = stack(Block, weights, "blocks", settings["heads"]), LayerNorm(weights, "norm")
        self.skip = param(weights["skip.weight"]) if settings["architecture"] == "skip" else None
        widths_differ = "decoder_embed.weight" in weights
        self.decoder_embed = Linear(weights, "decoder_embed") if widths_differ else nn.Identity()
        self.layers = stack(Layer, weights, "decoder_blocks", settings["decoder_heads"])
        self.decoder_norm, self.pred = LayerNorm(weights, "decoder_norm"), Linear(weights, "decoder_pred")

    def forward(self, patches, content, memory):
        """patches [batch, n, pixels], masks [batch, 1, n, n]  -> [batch, n, pixels]"""
        x, outputs = self.patch_embed(patches).float() + self.table, []
        for block in self.blocks:
            x = block(x, content)
            outputs.append(x)
        y = self.decoder_table.expand(len(patches), -1, -1)
        for layer, read in zip(self.layers, self.read(outputs)):
            y = layer(y, read, content, memory)
        return self.pred(self.decoder_norm(y))

    def read(self, outputs):
        """What each layer reads."""
        if self.skip is None:
            return [self.decoder_embed(self.norm(outputs[-1]))] * len(self.layers)
        seen = self.norm(torch.stack(outputs))  # [blocks, batch, n, dim]
        return self.decoder_embed((self.skip @ seen.flatten(1)).unflatten(1, seen.shape[1:]))


class TwoStreams(nn.Module):
    """An encoder with a second stream that begins with positions alone."""

    def __init__(self, weights, settings):
        super().__init__()
        self.table = weights["pos_embed"].clone()
        self.patch_embed = Linear(weights, "patch_embed.proj")
        self.blocks, self.norm = stack(StreamBlock, weights, "blocks", settings["heads"]), LayerNorm(weights, "norm")
        self.skip, self.pred = None, Linear(weights, "decoder_pred")

    def forward(self, patches, content, memory):
        """As that of `Decoded`."""
        embedded = self.patch_embed(patches).float() + self.table
        x = torch.cat([embedded, self.table.expand(len(patches), -1, -1)], dim=1)
        both = torch.cat([content, memory], dim=-2)
        for block in self.blocks[:-1]:
            x = block(x, both)
        return self.pred(self.norm(self.blocks[-1](x, memory)))  # Nobody reads the content on.


NETWORKS = {"plain": Decoded, "skip": Decoded, "two_stream": TwoStreams}


class Step:
    """The state of a training run, and its step."""

    def __init__(self, folder, precision):
        self.settings = json.loads((folder / "step.json").read_text())
        self.bf16 = precision == "bf16"
        weights = load_file(folder / "weights.safetensors")
        self.network = NETWORKS[self.settings["architecture"]](weights, self.settings)
        params = list(self.network.parameters())
        decayed = [p for p in params if p.ndim >= 2 and p is not self.network.skip]
        others = [p for p in params if p.ndim < 2 or p is self.network.skip]
        groups = [
            {"params": decayed, "weight_decay": self.settings["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        betas, eps = tuple(self.settings["betas"]), self.settings["eps"]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
        batch = load_file(folder / "batch.safetensors")
        self.images, self.ranks = batch["images"].clone(), batch["ranks"].clone()
        self.step = 0

    def patches(self):
        """The pixels of every patch.  -> [batch, patches, patch, patch, 3], row, column, channel"""
        batch, _, height, width = self.images.shape
        patch = self.settings["patch"]
        x = self.images.view(batch, 3, height // patch, patch, width // patch, patch)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)

    def masks(self):
        """Who sees whom, over all heads.  -> content and memory, [batch, 1, patches, patches]"""
        query, key = self.ranks[:, None, :, None], self.ranks[:, None, None, :]
        return key <= query, (key < query) | ((query == 0) & (key == 0))

    def loss(self):
        patches = self.patches()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            said = self.network(patches.permute(0, 1, 4, 2, 3).flatten(2), *self.masks())
        truth = patches.flatten(2)
        if self.settings["norm_pix"]:
            variance, mean = torch.var_mean(truth, dim=-1, keepdim=True)
            truth = (truth - mean) / (variance + PIXEL_EPS).sqrt()
        losses = F.mse_loss(said.float(), truth, reduction="none").mean(-1)
        return (losses if self.settings["loss_on_first"] else losses[self.ranks > 0]).mean()

    def train(self):
        """One step. -> losses"""
        loss = self.loss()
        loss.backward()
        lr = self.settings["lr"]
        for group in self.optimizer.param_groups:
            group["lr"] = lr[min(self.step, len(lr) - 1)]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {"pixels": loss.item()}

    @torch.no_grad()
    def losses(self):
        return {"pixels": self.loss().item()}

    def trained_numbers(self):
        return sum(p.numel() for p in self.network.parameters())


if __name__ == "__main__":
    serve(Step)
