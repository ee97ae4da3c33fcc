#!/usr/bin/env python3
"""Train the tiny Llama on what prepare.py made.

usage: train.py WORK [--steps N] [--device cpu|cuda] [--out NAME] ...     --help says the rest

Writes WORK/NAME.pt (what `--out NAME` says) every --save-every steps; the same command goes on from there. Each step's data
and dropout depend on the seed and the step's number alone, so that a run that was interrupted ends like one that was not.
With other --steps it goes on, too, under their schedule.

The last part of the steps (--int4-from) sees the matrices of the blocks as Q4_0 will hold them, with gradients straight
through: the int4 file loses next to nothing. Blocks in the middle are left out at random (--layer-drop), so that the
finished model bears layer programs that skip some.
"""
import argparse
import contextlib
import json
import math
import os
import time

import numpy
import torch
from torch.nn import functional

BEGIN = 1
SHAPE = {"n_layers": 8, "d_model": 192, "n_heads": 6, "n_kv_heads": 2, "head_dim": 32, "d_ff": 384, "n_context": 256}
ROPE_THETA, NORM_EPSILON = 10000.0, 1e-5


class AsQ4_0(torch.autograd.Function):
    """Blocks of 32 rounded as quantize_q4_0 in quant/quantize.c does it."""

    @staticmethod
    def forward(ctx, weight):
        blocks = weight.reshape(-1, 32)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = largest / -8
        inverse = torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
        steps = torch.floor(blocks * inverse + 8.5).clamp(0, 15) - 8
        return (steps * scale.half().float()).reshape(weight.shape)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Llama(torch.nn.Module):
    """Parameters have the names of GGUF's tensors, with _ for the dots."""

    def __init__(self, shape, n_vocabulary):
        super().__init__()
        self.shape = shape
        d, ff, layers = shape["d_model"], shape["d_ff"], shape["n_layers"]
        q, kv = shape["n_heads"] * shape["head_dim"], shape["n_kv_heads"] * shape["head_dim"]
        matrices = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
        matrices |= {"ffn_gate": (ff, d), "ffn_up": (ff, d), "ffn_down": (d, ff)}
        self.weights = torch.nn.ParameterDict()
        self.weights["token_embd"] = torch.nn.Parameter(torch.randn(n_vocabulary, d) * 0.02)
        for layer in range(layers):
            for name, size in matrices.items():
                deviation = size[1] ** -0.5 * (0.5 if name in ("attn_output", "ffn_down") else 1)
                self.weights[f"blk_{layer}_{name}"] = torch.nn.Parameter(torch.randn(size) * deviation)
            for name in "attn_norm", "ffn_norm":
                self.weights[f"blk_{layer}_{name}"] = torch.nn.Parameter(torch.ones(d))
        self.weights["output_norm"] = torch.nn.Parameter(torch.ones(d))
        half = shape["head_dim"] // 2
        angles = torch.arange(shape["n_context"])[:, None] * ROPE_THETA ** (-torch.arange(half) / half)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def rotate(self, x):
        """Neighbours are a pair, as in GGUF files of Llama models."""
        n = x.shape[2]
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        cosines, sines = self.cosines[:n], self.sines[:n]
        return torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), -1).flatten(-2).type_as(x)

    def forward(self, tokens, dropout=0.0, layer_drop=0.0, int4=False):
        shape, weights = self.shape, self.weights
        n, length = tokens.shape
        x = functional.embedding(tokens, weights["token_embd"])

        def norm(x, name):
            return functional.rms_norm(x, (shape["d_model"],), weights[name], NORM_EPSILON)

        def multiply(x, name):
            return functional.linear(x, AsQ4_0.apply(weights[name]) if int4 else weights[name])

        def heads(x, count):
            return x.view(n, length, count, shape["head_dim"]).transpose(1, 2)

        def add(x, y, keep):
            return x + functional.dropout(y, dropout) * keep

        for layer in range(shape["n_layers"]):
            block = f"blk_{layer}_"
            dropped = layer_drop if 0 < layer < shape["n_layers"] - 1 else 0.0
            keep = (torch.rand(n, 1, 1, device=x.device) >= dropped).float() if dropped > 0 else 1.0
            y = norm(x, block + "attn_norm")
            q = self.rotate(heads(multiply(y, block + "attn_q"), shape["n_heads"]))
            k = self.rotate(heads(multiply(y, block + "attn_k"), shape["n_kv_heads"]))
            v = heads(multiply(y, block + "attn_v"), shape["n_kv_heads"])
            groups = shape["n_heads"] // shape["n_kv_heads"]
            k, v = (z.repeat_interleave(groups, 1) for z in (k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = add(x, multiply(y, block + "attn_output"), keep)
            y = norm(x, block + "ffn_norm")
            y = functional.silu(multiply(y, block + "ffn_gate")) * multiply(y, block + "ffn_up")
            x = add(x, multiply(y, block + "ffn_down"), keep)
        return functional.linear(norm(x, "output_norm"), weights["token_embd"])


class Text:
    """Windows of a stream of tokens, each with BOS in front of its inputs."""

    def __init__(self, path, n_context, device):
        file = numpy.load(path)
        self.tokens = torch.from_numpy(file["tokens"].astype(numpy.int64)).to(device)
        starts = file["starts"]
        self.starts = torch.from_numpy(starts[starts + n_context <= len(file["tokens"])].astype(numpy.int64)).to(device)
        self.positions = torch.arange(n_context, device=device)

    def at(self, starts):
        targets = self.tokens[starts[:, None] + self.positions]
        inputs = targets.roll(1, 1)
        inputs[:, 0] = BEGIN
        return inputs, targets

    def sample(self, batch):
        return self.at(self.starts[torch.randint(len(self.starts), (batch,), device=self.starts.device)])

    def windows(self, batch):
        """All of it, without overlap; the rest of a window is left out."""
        n = len(self.positions)
        starts = torch.arange(0, len(self.tokens) - n + 1, n, device=self.tokens.device)
        return (self.at(part) for part in starts.split(batch))


def cross_entropy(logits, targets, reduction="mean"):
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


@torch.no_grad()
def measure(model, text, batch, int4):
    loss = count = 0
    for inputs, targets in text.windows(batch):
        loss += cross_entropy(model(inputs, int4=int4), targets, "sum").item()
        count += targets.numel()
    return loss / count


def learning_rate(options, step):
    if step < options.warm_up:
        return options.rate * (step + 1) / options.warm_up
    done = (step - options.warm_up) / max(1, options.steps - options.warm_up)
    return options.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def parse_options():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--out", default="model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0: as many as there are")
    parser.add_argument("--seed", type=int, default=1611)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=64, help="windows of a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--decay", type=float, default=0.1, help="of the matrices' weights")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--layer-drop", type=float, default=0.05)
    parser.add_argument("--int4-from", type=float, default=0.7, help="share of the steps without rounding")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, where the processor is fast at them")
    parser.add_argument("--save-every", type=int, default=100, help="also: measure")
    return parser.parse_args()


def main():
    options = parse_options()
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    on_gpu = options.device.startswith("cuda")
    with open(os.path.join(options.work, "vocabulary.json"), encoding="utf-8") as file:
        n_vocabulary = len(json.load(file)["texts"])
    torch.manual_seed(options.seed)
    model = Llama(SHAPE, n_vocabulary).to(options.device)
    train, valid = (Text(os.path.join(options.work, f"{name}.npz"), SHAPE["n_context"], options.device) for name in ("train", "valid"))
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": options.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95), fused=on_gpu)
    path = os.path.join(options.work, options.out + ".pt")
    first, spent = 0, 0.0
    if os.path.exists(path):
        saved = torch.load(path, map_location=options.device, weights_only=True)
        free = "work", "device", "threads", "save_every", "steps"  # a run may be made shorter or longer
        changed = [name for name, value in saved["options"].items() if name not in free and vars(options).get(name) != value]
        if changed:
            raise SystemExit(f"{path} was made with other options ({', '.join(changed)}); remove it, or name another --out")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
    n_parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{n_parameters} parameters, {len(train.tokens)} tokens to train, {len(valid.tokens)} to validate, from step {first}", flush=True)

    started, mean = time.monotonic(), None
    for step in range(first, options.steps):
        torch.manual_seed(options.seed * 1000003 + step)
        int4 = step >= options.int4_from * options.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step)
        inputs, targets = train.sample(options.batch)
        with torch.autocast(options.device, torch.bfloat16) if options.bf16 else contextlib.nullcontext():
            loss = cross_entropy(model(inputs, options.dropout, options.layer_drop, int4), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach() if mean is None else mean.lerp(loss.detach(), 0.05)
        done = step + 1
        if done % 20 == 0:
            seconds = time.monotonic() - started
            speed = (done - first) * targets.numel() / seconds
            rest = seconds / (done - first) * (options.steps - done)
            line = f"step {done}/{options.steps}  loss {mean.item():.4f}  {speed:.0f} tokens/s  {rest:.0f} s to go"
            print(line, end="\n" if done % options.save_every == 0 else "\r", flush=True)
        if done % options.save_every == 0 or done == options.steps:
            valid_loss = measure(model, valid, options.batch, int4)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            state |= {"seconds": spent + time.monotonic() - started, "valid_loss": valid_loss, "train_loss": mean.item()}
            state |= {"options": vars(options), "shape": SHAPE}
            torch.save(state, path + ".new")
            os.replace(path + ".new", path)
            print(f"step {done}: validation loss {valid_loss:.4f}{' (int4)' if int4 else ''}, {state['seconds']:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
