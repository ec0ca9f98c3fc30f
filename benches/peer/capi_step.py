"""One whole CAPI training step in PyTorch: what `cargo xtask bench step --peer` compares this project with.

    python capi_step.py FOLDER --precision f32|bf16 --threads N

Written from the project's specification, as a careful PyTorch user would write it: packed projections, SDPA, fused AdamW,
foreach averages, residual branches computed for the kept images only, the clustering with its closed-form gradient in
pieces that stay in the cache. `bf16` is autocast: f32 weights, moments, norms, Sinkhorn and losses, bf16 products.

FOLDER   written by `bench-step`:
         weights.safetensors  a training state: student.*, student_ema.*, teacher.head.layer.*
         batch.safetensors    images [batch, 3, height, width], mask [batch, patches] (1: hidden),
                              visible [batch * v] and predict [batch * q], flat indices
         step.json            everything that shapes do not say

A server: see `serving.py`. Its losses are "prediction" and "clustering".  Needs: pip install torch numpy safetensors
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from serving import serve
from torch import nn

NORM_EPS = 1e-5
# Scores of the clustering that exist at a time: whole positions, about this many numbers.
CHUNK_SCORES = 1 << 20


def param(*tensors):
    """A parameter of its own memory; several tensors are packed along their first axis."""
    return nn.Parameter(torch.cat(tensors).contiguous() if len(tensors) > 1 else tensors[0].clone())


def rms_norm(x, weight=None):
    return F.rms_norm(x, x.shape[-1:], weight, NORM_EPS)


class Angles:
    """Cosines and sines of a set of tokens under one frequency table.  coords [b or 1, n, 2] -> [b or 1, n, 1, size]"""

    def __init__(self, coords, table, dtype):
        angle = (coords @ table).unsqueeze(2)
        self.cos, self.sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def of(self, rows):
        if rows is None or self.cos.shape[0] == 1:
            return self.cos, self.sin
        return self.cos.index_select(0, rows), self.sin.index_select(0, rows)


def place(x, angles, rows):
    """CAPI's position encoding; the members of a pair have different angles.  x [b, n, heads, size]"""
    cos, sin = angles.of(rows)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def residual(x, rate, branch):
    """x + branch(x), the branch computed for a random part of the batch and scaled up where rate > 0."""
    batch = x.shape[0]
    keep = max(int(batch * (1.0 - rate)), 1)
    if keep == batch:
        return x + branch(x, None)
    rows = torch.randperm(batch)[:keep]
    out = branch(x.index_select(0, rows), rows)
    return torch.index_add(x, 0, rows, out.to(x.dtype), alpha=batch / keep)


class Block(nn.Module):
    """Pre-norm transformer block; with `cross` keys and values come from a context that is normed already."""

    def __init__(self, weights, name, heads, cross):
        super().__init__()
        w = lambda key: weights[f"{name}.{key}.weight"]
        q, k, v = (w(f"residual1.fn.{part}_proj") for part in "qkv")
        self.heads, self.cross = heads, cross
        self.norm1, self.norm2 = param(w("residual1.norm")), param(w("residual2.norm"))
        if cross:
            self.q, self.kv = param(q), param(k, v)
        else:
            self.qkv = param(q, k, v)
        self.proj = param(w("residual1.fn.proj"))
        self.fc1, self.fc2 = param(w("residual2.fn.fc1")), param(w("residual2.fn.fc2"))

    def forward(self, x, angles, rate, context=None, context_angles=None):
        x = residual(x, rate, lambda some, rows: self.attend(some, rows, angles, context, context_angles))
        return residual(x, rate, lambda some, _: F.linear(F.gelu(F.linear(rms_norm(some, self.norm2), self.fc1)), self.fc2))

    def attend(self, x, rows, angles, context, context_angles):
        x = rms_norm(x, self.norm1)
        batch, tokens, _ = x.shape
        if self.cross:
            if rows is not None:
                context = context.index_select(0, rows)
            q = place(F.linear(x, self.q).view(batch, tokens, self.heads, -1), angles, rows)
            k, v = F.linear(context, self.kv).view(batch, context.shape[1], 2, self.heads, -1).unbind(2)
            k = place(k, context_angles, rows)
        else:
            packed = F.linear(x, self.qkv).view(batch, tokens, 3, self.heads, -1)
            # Queries and keys in one go: twice the heads.
            both = place(packed[:, :, :2].flatten(2, 3), angles, rows)
            (q, k), v = both.split(self.heads, dim=2), packed[:, :, 2]
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return F.linear(out.transpose(1, 2).reshape(batch, tokens, -1), self.proj)


class Network(nn.Module):
    """Encoder, predictor and head: a student, or the teacher that averages it."""

    def __init__(self, weights, prefix, settings):
        super().__init__()
        weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        depth = lambda part: 1 + max(int(key.split(".")[3]) for key in weights if key.startswith(f"backbone.{part}.blocks."))
        self.settings = settings
        self.patch_weight = param(weights["backbone.patch_embed.weight"].flatten(1))
        self.patch_bias = param(weights["backbone.patch_embed.bias"])
        self.registers = param(weights["backbone.registers"])
        self.mask_token = param(weights["backbone.mask_token"])
        block = lambda part, i, heads: Block(weights, f"backbone.{part}.blocks.{i}", heads, cross=part == "decoder")
        self.encoder = nn.ModuleList(block("encoder", i, settings["heads"]) for i in range(depth("encoder")))
        self.predictor = nn.ModuleList(block("decoder", i, settings["predictor_heads"]) for i in range(depth("decoder")))
        self.head_g = param(weights["head.last_layer.weight_g"])
        self.head_v = param(weights["head.last_layer.weight_v"])
        # Constants, equal in all blocks of a stack: angles are computed once for each stack.
        self.table = same([w for key, w in weights.items() if "encoder" in key and key.endswith("rope.freqs")])
        self.predictor_table = same([w for key, w in weights.items() if "decoder" in key and key.endswith("rope.freqs")])

    def encode(self, patches, angles, rate=0.0):
        """patches [b, n, pixels] -> normed tokens, registers first  [b, r + n, dim]"""
        x = F.linear(patches, self.patch_weight, self.patch_bias)
        x = torch.cat([self.registers.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1).float()
        for block in self.encoder:
            x = block(x, angles, rate)
        return rms_norm(x)

    def predict(self, context, context_angles, angles, count, rate):
        """Mask tokens through cross-attention, then the head.  -> [b * count, prototypes]"""
        x = self.mask_token.expand(context.shape[0], count, -1)
        for block in self.predictor:
            x = block(x, angles, rate, context, context_angles)
        x = F.normalize(rms_norm(x).flatten(0, 1), dim=-1, eps=1e-12)
        weight = self.head_v * (self.head_g / (self.head_v.norm(dim=-1, keepdim=True) + 1e-8))
        return F.linear(x, weight)

    def groups(self, settings):
        """Parameter groups with factors on learning rate and weight decay."""
        norms = [p for name, p in self.named_parameters() if name.split(".")[-1] in ("norm1", "norm2")]
        special = {id(p) for p in [*norms, self.patch_weight, self.patch_bias]}
        group = lambda params, lr, wd: {"params": params, "factor": lr, "weight_decay": settings["weight_decay"] * wd}
        return [
            group([p for p in self.parameters() if id(p) not in special], 1.0, 1.0),
            group(norms, 1.0, settings["norm_wd"]),
            group([self.patch_weight], settings["patch_embed_lr"], 1.0),
            group([self.patch_bias], settings["patch_embed_lr"], 0.0),
        ]


def same(tables):
    if any(not torch.equal(table, tables[0]) for table in tables):
        raise ValueError("the frequency tables of a stack differ")
    return tables[0].clone()


def patch_coords(rows, cols):
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, cols), indexing="ij")
    return torch.stack([y, x], dim=-1).reshape(-1, 2)


def register_coords(count):
    """Evenly around the edge of the unit square, `count` divisible by 4."""
    side = [i / (count // 4) for i in range(count // 4)]
    edge = [(c, 0.0) for c in side] + [(1.0, c) for c in side] + [(1 - c, 1.0) for c in side] + [(0.0, 1 - c) for c in side]
    return torch.tensor(edge).reshape(-1, 2)


def with_registers(unit, coords):
    """Register coordinates scaled into the box of the patches, then the patches.  [b, n, 2] -> [b, r + n, 2]"""
    low, high = coords.amin(1, keepdim=True), coords.amax(1, keepdim=True)
    return torch.cat([low + unit * (high - low), coords], dim=1)


def sinkhorn(z, iterations):
    """In place, each position on its own with the batch as samples.  [positions, batch, prototypes]"""
    z.sub_(z.amax(1, keepdim=True) - 50.0).exp_()
    for _ in range(iterations):
        z.div_(z.sum(1, keepdim=True).add_(1e-8))
        z.div_(z.sum(2, keepdim=True).add_(1e-8))
    return z


class Step:
    """The state of a training run, and its step."""

    def __init__(self, folder, precision):
        self.settings = json.loads((folder / "step.json").read_text())
        self.bf16 = precision == "bf16"
        weights = load_file(folder / "weights.safetensors")
        self.student = Network(weights, "student.", self.settings)
        self.teacher = Network(weights, "student_ema.", self.settings).requires_grad_(False)
        self.prototypes = param(weights["teacher.head.layer.weight"])
        self.bias = param(weights["teacher.head.layer.bias"])
        adamw = {"lr": 0.0, "betas": tuple(self.settings["betas"]), "eps": self.settings["eps"], "fused": True}
        self.optimizer = torch.optim.AdamW(self.student.groups(self.settings), **adamw)
        decay = self.settings["clustering_weight_decay"]
        self.clustering_optimizer = torch.optim.AdamW([self.prototypes, self.bias], weight_decay=decay, **adamw)
        self.trained, self.averaged = list(self.student.parameters()), list(self.teacher.parameters())
        self.load_batch({key: value.clone() for key, value in load_file(folder / "batch.safetensors").items()})
        self.step = 0

    def load_batch(self, batch):
        patch = self.settings["patch"]
        self.images, self.visible, self.predicted = batch["images"], batch["visible"].long(), batch["predict"].long()
        self.batch, _, height, width = self.images.shape
        self.rows, self.cols, self.patch = height // patch, width // patch, patch
        self.patches = self.rows * self.cols
        hidden = batch["mask"].flatten().bool()
        if not torch.equal((~hidden).nonzero().flatten(), self.visible) or not hidden[self.predicted].all():
            raise ValueError("batch.safetensors: mask, visible and predict do not agree")
        # What does not change from step to step is kept, as in a training program.
        self.coords = patch_coords(self.rows, self.cols)
        self.unit = register_coords(self.student.registers.shape[1])
        whole = with_registers(self.unit, self.coords.unsqueeze(0))
        self.whole_angles = Angles(whole, self.student.table, self.compute_dtype())

    def compute_dtype(self):
        return torch.bfloat16 if self.bf16 else torch.float32

    def autocast(self):
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    def patch_rows(self):
        """The pixels of every patch, channel by channel.  -> [batch, patches, 3 * patch * patch]"""
        x = self.images.view(self.batch, 3, self.rows, self.patch, self.cols, self.patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(self.batch, self.patches, -1)

    def teach(self, patches, learn):
        """Targets of the predicted patches, the clustering loss and, with `learn`, its gradients."""
        with self.autocast():
            seen = self.teacher.encode(patches, self.whole_angles)[:, -self.patches :]
        # Position by position: [patches * batch, dim]
        tokens = F.normalize(seen.transpose(0, 1).flatten(0, 1), dim=-1, eps=1e-7)
        dtype = self.compute_dtype()
        tokens, prototypes, bias = (x.detach().to(dtype) for x in (tokens, self.prototypes, self.bias))
        at, image = self.predicted % self.patches, self.predicted // self.patches
        count, k = self.patches * self.batch, prototypes.shape[0]
        targets, loss = torch.empty(len(at), k), 0.0
        pred_temp, target_temp = self.settings["pred_temp"], self.settings["target_temp"]
        if learn:
            self.prototypes.grad, self.bias.grad = torch.zeros_like(self.prototypes), torch.zeros_like(self.bias)
        for start in range(0, self.patches, chunk := max(CHUNK_SCORES // (self.batch * k), 1)):
            some = tokens[start * self.batch : (start + chunk) * self.batch]
            scores = F.linear(some, prototypes, bias).float()
            assigned = sinkhorn((scores / target_temp).view(-1, self.batch, k), self.settings["iterations"])
            log_p, flat = F.log_softmax(scores.div_(pred_temp), dim=-1), assigned.view(-1, k)
            loss -= (flat * log_p).sum(-1).sum(dtype=torch.float64).item()
            here = ((at >= start) & (at < start + chunk)).nonzero().flatten()
            targets[here] = assigned[at[here] - start, image[here]]
            if learn:
                # (sum of the assignments * softmax - assignments) / (temperature * tokens)
                slope = log_p.exp_().mul_(flat.sum(-1, keepdim=True)).sub_(flat)
                scale = 1.0 / (pred_temp * count)
                if self.bf16:
                    self.prototypes.grad.add_(slope.to(dtype).t() @ some, alpha=scale)
                else:
                    self.prototypes.grad.addmm_(slope.t(), some, alpha=scale)
                self.bias.grad.add_(slope.sum(0), alpha=scale)
        return targets, loss / count

    def predict(self, patches, targets, rate):
        """The student's loss, with its graph."""
        visible = patches.flatten(0, 1).index_select(0, self.visible).view(self.batch, -1, patches.shape[-1])
        coords = self.coords[self.visible % self.patches].view(self.batch, -1, 2)
        asked = self.coords[self.predicted % self.patches].view(self.batch, -1, 2)
        known = with_registers(self.unit.expand(self.batch, -1, -1), coords)
        table, predictor_table, dtype = self.student.table, self.student.predictor_table, self.compute_dtype()
        angles = Angles(known, table, dtype)
        context_angles = angles if torch.equal(table, predictor_table) else Angles(known, predictor_table, dtype)
        with self.autocast():
            context = self.student.encode(visible, angles, rate)
            asked_angles = Angles(asked, predictor_table, dtype)
            scores = self.student.predict(context, context_angles, asked_angles, asked.shape[1], rate)
        return F.cross_entropy(scores.float() / self.settings["student_temp"], targets)

    def train(self):
        """One step. -> losses"""
        now = lambda name: self.settings[name][min(self.step, len(self.settings[name]) - 1)]
        for group in self.optimizer.param_groups:
            group["lr"] = now("lr") * group["factor"]
        self.clustering_optimizer.param_groups[0]["lr"] = now("clustering_lr")
        patches = self.patch_rows()
        with torch.no_grad():
            targets, clustering = self.teach(patches, learn=True)
        loss = self.predict(patches, targets, self.settings["drop_path"])
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.trained, 1.0 - now("momentum"))
        self.clustering_optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {"prediction": loss.item(), "clustering": clustering}

    def trained_numbers(self):
        return sum(p.numel() for p in [*self.trained, self.prototypes, self.bias])

    @torch.no_grad()
    def losses(self):
        patches = self.patch_rows()
        targets, clustering = self.teach(patches, learn=False)
        return {"prediction": self.predict(patches, targets, 0.0).item(), "clustering": clustering}


if __name__ == "__main__":
    serve(Step)
