"""One whole MOCA training step in PyTorch: what `cargo xtask bench step --method moca --peer` compares this project with.

    python moca_step.py FOLDER --precision f32|bf16 --threads N

Written from the project's specification, as a careful PyTorch user would write it: SDPA, fused AdamW, foreach averages, both
views through the teacher in one batch, divergences as cross-entropies of which the targets' entropy is taken. The graph of a
round is given back before the next one is made, as ours is: the generators, which all rounds share, are gone through backward
once, at the end. `bf16` is autocast: f32 weights, moments, norms, codebook, assignments and losses, bf16 products.

FOLDER   written by `bench-step`:
         weights.safetensors  a training state under the names of the public code
         batch.safetensors    images [2 * batch, 3, side, side], the first views before the second; of each round r = 1, 2, ..
                              decoded_r [2 * batch, decode], flat indices of patches, the visible ones first; words [new words],
                              flat indices of the tokens that become words
         step.json            everything that shapes do not say

A server: see `serving.py`. Its losses are "image", "local" and "total".  Needs: pip install torch numpy safetensors
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from serving import serve
from torch import nn

LAYER_NORM_EPS = 1e-6
BATCH_NORM_EPS = 1e-5
NORMALIZE_EPS = 1e-5
# Share of a step in the running statistics of the generators, and of a view in the running similarity distance.
BATCH_NORM_MOMENTUM = 0.1
DISTANCE_MOMENTUM = 0.01
# A mean over the rows of both views, doubled, is the sum of the views' means.
VIEWS = 2


def under(weights, prefix):
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def param(tensor):
    """A parameter of its own memory."""
    return nn.Parameter(tensor.clone())


def unit(x, p=2):
    return F.normalize(x, p=p, dim=-1, eps=NORMALIZE_EPS)


class Linear(nn.Module):
    def __init__(self, weights, name):
        super().__init__()
        self.weight, self.bias = param(weights[f"{name}.weight"].flatten(1)), param(weights[f"{name}.bias"])

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    def __init__(self, weights, name):
        super().__init__()
        self.weight, self.bias = param(weights[f"{name}.weight"]), param(weights[f"{name}.bias"])

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, weights, name, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(weights, f"{name}.norm1"), LayerNorm(weights, f"{name}.norm2")
        self.qkv, self.proj = Linear(weights, f"{name}.attn.qkv"), Linear(weights, f"{name}.attn.proj")
        self.fc1, self.fc2 = Linear(weights, f"{name}.mlp.fc1"), Linear(weights, f"{name}.mlp.fc2")

    def forward(self, x):
        rows, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, tokens, -1)
        x = x + self.proj(seen)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def blocks(weights, name, heads):
    depth = 1 + max(int(key[len(name) + 1 :].split(".")[0]) for key in weights if key.startswith(f"{name}."))
    return nn.ModuleList(Block(weights, f"{name}.{i}", heads) for i in range(depth))


class Encoder(nn.Module):
    """A plain pre-norm ViT with a class token and a fixed table of positions: the student's, or the teacher."""

    def __init__(self, weights, settings):
        super().__init__()
        self.positions = weights["pos_embed"][0].clone()  # [1 + patches, dim], the class token's first
        self.cls_token = param(weights["cls_token"])
        self.patch_embed = Linear(weights, "patch_embed.proj")
        self.blocks = blocks(weights, "blocks", settings["heads"])
        self.norm = LayerNorm(weights, "norm")
        self.intermediate = settings["intermediate"]

    def forward(self, patches, places=None):
        """patches [rows, n, pixels] at places [rows, n], or all of them in order.
        -> normed tokens, and those that the intermediate block gives, class token first  [rows, 1 + n, dim]"""
        table = self.positions[1:] if places is None else self.positions[1:][places]
        x = self.patch_embed(patches).float() + table
        x = torch.cat([(self.cls_token + self.positions[0]).expand(x.shape[0], -1, -1), x], dim=1)
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number == self.intermediate:
                tapped = x
        return self.norm(x), tapped


class Decoder(nn.Module):
    """The condenser: the mean of the last tokens, intermediate tokens of the visible patches, a mask token for the others."""

    def __init__(self, weights, settings):
        super().__init__()
        self.positions = weights["decoder_pos_embed"][0].clone()
        self.mask_token = param(weights["mask_token_cls_pt"])
        self.norm_in, self.embed = LayerNorm(weights, "norm_cls_pt"), Linear(weights, "decoder_embed_cls_pt")
        self.blocks = blocks(weights, "decoder_blocks_cls_pt", settings["decoder_heads"])
        self.norm = LayerNorm(weights, "decoder_norm_cls_pt")

    def forward(self, mean, visible, places):
        """mean [rows, dim], visible [rows, keep, dim], places [rows, decode]  -> [rows, decode, decoder dim]"""
        hidden = self.mask_token.expand(places.shape[0], places.shape[1] - visible.shape[1], -1)
        x = self.embed(torch.cat([mean.unsqueeze(1), self.norm_in(visible)], dim=1)).float()
        table = F.pad(self.positions[1:][places], (0, 0, 1, 0))  # The mean has no place: zeros, as in row 0 of the table.
        x = torch.cat([x, hidden], dim=1) + table
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:]


class Generator(nn.Module):
    """Makes prototypes of words: a perceptron with batch normalisation over the words, beside a skip connection."""

    def __init__(self, weights, prefix):
        super().__init__()
        self.kappa = weights[f"{prefix}scale"].item()
        weights = under(weights, f"{prefix}layers_w.0.")
        self.fc = param(weights["generator.b0_fc.weight"])
        self.bn_weight, self.bn_bias = param(weights["generator.b0_bn.weight"]), param(weights["generator.b0_bn.bias"])
        self.mean = weights["generator.b0_bn.running_mean"].clone()
        self.var = weights["generator.b0_bn.running_var"].clone()
        self.last = Linear(weights, "generator.b0_last_layer")
        self.skip = Linear(weights, "skip") if "skip.weight" in weights else nn.Identity()

    def forward(self, words, learn):
        """words [words, dim] -> [words, features]; with `learn` the running statistics move."""
        words = unit(words)
        running = (self.mean, self.var) if learn else (None, None)
        x = F.linear(words, self.fc).float()
        x = F.batch_norm(x, *running, self.bn_weight, self.bn_bias, True, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS)
        return unit(self.last(F.relu(x)).float() + self.skip(words))

    def scores(self, features, prototypes):
        return F.linear(self.kappa * features, prototypes).float()


class Codebook:
    """A queue of the teacher's own recent tokens, and the temperature at which patches are assigned to them."""

    def __init__(self, weights, settings):
        self.settings = settings
        self.words = weights["_embedding"].clone()
        self.at = weights["_embedding_ptr"].item()
        self.distance, self.previous = weights["_dist_norm"].item(), weights["_dist_norm_prev"].item()

    def assign(self, tokens, learn):
        """tokens [rows, patches, dim] -> assignments [rows, patches, words]"""
        scores = F.linear(unit(tokens), self.words).float()
        if learn:
            distances = (scores.amax(-1) - scores.mean(-1)).view(VIEWS, -1).mean(1).abs()
            for distance in distances.tolist():
                self.distance += DISTANCE_MOMENTUM * (distance - self.distance)
        return F.softmax(scores.mul_(self.settings["inverse_temperature"] / self.previous), dim=-1)

    def push(self, words):
        # A new tensor: the graph of the generators may hold the old one.
        self.words = self.words.clone()
        self.words[self.at : self.at + len(words)] = unit(words)
        self.at = (self.at + len(words)) % len(self.words)
        self.previous = self.distance

    def of_images(self, assigned):
        """The mean assignment of each image inside the border.  [rows, patches, words] -> [rows, words]"""
        rows, patches, words = assigned.shape
        side, border = round(patches**0.5), self.settings["border"]
        inside = assigned.view(rows, side, side, words)[:, border : side - border, border : side - border]
        return unit(inside.mean((1, 2)), p=1)


class Goal:
    """Targets and their entropies, row by row: the mean assignment of the other view, the patches of the same one."""

    def __init__(self, images, patches):
        self.images = images.roll(len(images) // VIEWS, 0)  # [rows, words]
        self.patches = patches.flatten(0, 1)  # [rows * patches, words]
        self.image_entropy, self.patch_entropy = entropy(self.images), entropy(self.patches)


def entropy(targets):
    return torch.special.entr(targets).sum(-1)


def divergence(scores, targets, entropies):
    """The mean of KL(target, softmax of the scores)."""
    return F.cross_entropy(scores, targets) - entropies.mean()


class Step:
    """The state of a training run, and its step."""

    def __init__(self, folder, precision):
        self.settings = json.loads((folder / "step.json").read_text())
        self.bf16 = precision == "bf16"
        weights = load_file(folder / "weights.safetensors")
        self.teacher = Encoder(under(weights, "encoder_teacher."), self.settings).requires_grad_(False)
        self.codebook = Codebook(under(weights, "bow_extractor.bow_extractor.0."), self.settings)
        self.encoder = Encoder(under(weights, "encoder."), self.settings)
        self.decoder = Decoder(weights, self.settings)
        self.generators = nn.ModuleList([Generator(weights, "encoder_pred."), Generator(weights, "decoder_pred.")])
        self.averaged, self.followed = list(self.teacher.parameters()), list(self.encoder.parameters())
        student, generators = [*self.followed, *self.decoder.parameters()], list(self.generators.parameters())
        self.trained = [*student, *generators]
        group = lambda params, names: {"params": params, "schedules": names}
        groups = [
            group([p for p in student if p.ndim < 2], {"lr": "lr"}),
            group([p for p in student if p.ndim >= 2], {"lr": "lr", "weight_decay": "weight_decay"}),
            group([p for p in generators if p.ndim < 2], {"lr": "generator_lr"}),
            group([p for p in generators if p.ndim >= 2], {"lr": "generator_lr", "weight_decay": "generator_weight_decay"}),
        ]
        betas, eps = tuple(self.settings["betas"]), self.settings["eps"]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, weight_decay=0.0, fused=True)
        self.load_batch({key: value.clone() for key, value in load_file(folder / "batch.safetensors").items()})
        self.step = 0

    def load_batch(self, batch):
        self.images, self.new_words = batch["images"], batch["words"]
        rows, _, height, width = self.images.shape
        self.patches = (height // self.settings["patch"]) * (width // self.settings["patch"])
        self.rounds = [(keep, batch[f"decoded_{number}"]) for number, keep in enumerate(self.settings["keep"], 1)]
        for _, decoded in self.rounds:
            if not torch.equal(decoded // self.patches, torch.arange(rows).unsqueeze(1).expand_as(decoded)):
                raise ValueError("batch.safetensors: a row of a round has patches of another")

    def autocast(self):
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    def patch_rows(self):
        """The pixels of every patch, channel by channel.  -> [rows, patches, 3 * patch * patch]"""
        rows, _, height, width = self.images.shape
        patch = self.settings["patch"]
        x = self.images.view(rows, 3, height // patch, patch, width // patch, patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(rows, self.patches, -1)

    @torch.no_grad()
    def teach(self, patches, learn):
        """Targets, from the words as they are before the step's own come in."""
        with self.autocast():
            tokens = self.teacher(patches)[0][:, 1:]
            assigned = self.codebook.assign(tokens, learn)
        return Goal(self.codebook.of_images(assigned), assigned), tokens

    def predict(self, patches, keep, decoded, goal, prototypes):
        """Both losses of a round, with its graph."""
        visible, places = decoded[:, :keep], decoded % self.patches
        with self.autocast():
            seen, tapped = self.encoder(patches.flatten(0, 1)[visible], places[:, :keep])
            mean = seen[:, 1:].mean(1)
            said = self.decoder(mean, tapped[:, 1:], places).flatten(0, 1)
            of_images, of_patches = (
                generator.scores(features, made)
                for generator, features, made in zip(self.generators, (mean, said), prototypes)
            )
        asked = decoded.flatten()
        local = divergence(of_patches, goal.patches[asked], goal.patch_entropy[asked])
        return divergence(of_images, goal.images, goal.image_entropy), local

    def generate(self, words, learn):
        with self.autocast():
            return [generator(words, learn) for generator in self.generators]

    def total(self, image, local):
        return self.settings["lambda"] * image + (1 - self.settings["lambda"]) * local

    def named(self, rounds):
        """rounds: both losses of each"""
        image, local = (VIEWS * sum(losses) / len(rounds) for losses in zip(*rounds))
        return {"total": self.total(image, local), "image": image, "local": local}

    def train(self):
        """One step. -> losses"""
        now = lambda name: self.settings[name][min(self.step, len(self.settings[name]) - 1)]
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.followed, 1.0 - now("momentum"))
        patches = self.patch_rows()
        goal, tokens = self.teach(patches, learn=True)
        words = self.codebook.words
        self.codebook.push(tokens.flatten(0, 1)[self.new_words])

        prototypes = self.generate(words, learn=True)
        leaves, rounds = [made.detach().requires_grad_() for made in prototypes], []
        for keep, decoded in self.rounds:
            image, local = self.predict(patches, keep, decoded, goal, leaves)
            (self.total(image, local) * VIEWS / len(self.rounds)).backward()
            rounds.append((image.item(), local.item()))
        torch.autograd.backward(prototypes, [leaf.grad for leaf in leaves])
        self.update(now)
        self.step += 1
        return self.named(rounds)

    def update(self, now):
        nn.utils.clip_grad_norm_(self.trained, self.settings["clip"])
        for group in self.optimizer.param_groups:
            group.update({field: now(name) for field, name in group["schedules"].items()})
        self.optimizer.step()
        self.optimizer.zero_grad()

    def trained_numbers(self):
        return sum(p.numel() for p in self.trained)

    @torch.no_grad()
    def losses(self):
        patches = self.patch_rows()
        goal, _ = self.teach(patches, learn=False)
        prototypes = self.generate(self.codebook.words, learn=False)
        rounds = [self.predict(patches, keep, decoded, goal, prototypes) for keep, decoded in self.rounds]
        return self.named([(image.item(), local.item()) for image, local in rounds])


if __name__ == "__main__":
    serve(Step)
