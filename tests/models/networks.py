"""The networks of the test zoo that are not torchvision's, in PyTorch.

Each stands for a structure that pruning must follow; widths are small so that files and runs are.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional


def normalized(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1):
    """Convolution, batch normalization and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Encoder and decoder with skip concatenations; up by ConvTranspose and by Resize.

    (batch, 3, height, width) float → (batch, 2, height, width) float
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128)):
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(normalized(before, width), normalized(width, width))
            for before, width in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for index, (wide, width) in enumerate(zip(widths[:0:-1], widths[-2::-1], strict=True)):
            if index == 1:
                resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
                self.up.append(nn.Sequential(resize, nn.Conv2d(wide, width, 1)))
            else:
                self.up.append(nn.ConvTranspose2d(wide, width, 2, 2))
            self.decoder.append(nn.Sequential(normalized(wide, width), normalized(width, width)))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips = []
        x = image
        for stage in self.encoder:
            x = stage(self.pool(x) if skips else x)
            skips.append(x)
        skips.pop()
        for up, stage in zip(self.up, self.decoder, strict=True):
            x = stage(torch.cat((skips.pop(), up(x)), 1))
        return self.head(x)


class TokenClassifier(nn.Module):
    """Embedding, recurrent network in both directions, mean over time, linear.

    (batch, time) int → (batch, 5) float
    """

    def __init__(
        self, cell: str, vocabulary: int = 500, width: int = 64, hidden: int = 96, **options
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        recurrent = getattr(nn, cell)
        self.recurrent = recurrent(
            width, hidden, num_layers=2, batch_first=True, bidirectional=True, **options
        )
        self.classifier = nn.Linear(2 * hidden, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return self.classifier(states.mean(1))


class StackedRecurrent(nn.Module):
    """Recurrent layers in one direction over real inputs, time first; the last state is read.

    (time, batch, 24) float → (batch, 5) float
    """

    def __init__(self, recurrent: nn.Module):
        super().__init__()
        self.recurrent = recurrent
        self.classifier = nn.Linear(recurrent.hidden_size, 5)

    def forward(self, signal: Tensor) -> Tensor:
        _, state = self.recurrent(signal)
        hidden = state[0] if isinstance(state, tuple) else state
        return self.classifier(hidden[-1])


class BertLike(nn.Module):
    """Encoder of PyTorch's own transformer layers, with learned positions and a pooler.

    (batch, time) int → (batch, 3) float
    """

    def __init__(self, vocabulary: int = 1000, width: int = 128, layers: int = 4):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.norm(self.tokens(tokens) + self.positions(places))
        return self.classifier(torch.tanh(self.pooler(self.encoder(x)[:, 0])))


class SeparateAttention(nn.Module):
    """Self-attention with three linear layers and an additive mask, spelled out.

    (batch, time, width) float, (batch, 1, 1, time) float → (batch, time, width) float
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.value(x)
        scores = query @ key.transpose(-1, -2) / (query.shape[-1] ** 0.5) + bias
        mixed = torch.softmax(scores, -1) @ self.split(value)
        return self.output(mixed.permute(0, 2, 1, 3).reshape(x.shape))


class EncoderMask(nn.Module):
    """Encoder with post-normalization and a padding mask as its second input.

    (batch, time) int, (batch, time) int of 0 and 1 → (batch, time, 64) float, (batch, 64) float
    """

    def __init__(self, width: int = 64, layers: int = 2):
        super().__init__()
        self.tokens = nn.Embedding(300, width)
        self.positions = nn.Parameter(torch.randn(1, 32, width) * 0.1)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.ModuleList(SeparateAttention(width, 4) for _ in range(layers))
        self.attention_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.output_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.pooler = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        bias = (1.0 - mask[:, None, None, :].to(torch.float32)) * -10000.0
        x = self.norm(self.tokens(tokens) + self.positions[:, : tokens.shape[1]])
        for attention, first, up, down, second in zip(
            self.attention,
            self.attention_norm,
            self.up,
            self.down,
            self.output_norm,
            strict=True,
        ):
            x = first(x + attention(x, bias))
            x = second(x + down(functional.gelu(up(x))))
        return x, torch.tanh(self.pooler(x[:, 0]))


class CausalBlock(nn.Module):
    """Pre-normalized block with one linear layer for query, key and value, and a causal mask.

    (batch, time, width) float → (batch, time, width) float
    """

    def __init__(self, width: int, heads: int, longest: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.register_buffer("causal", torch.ones(longest, longest).tril().bool()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        parts = self.mixed(self.attention_norm(x)).split(width, dim=2)
        query, key, value = (
            part.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
            for part in parts
        )
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        scores = scores.masked_fill(~self.causal[:, :, :time, :time], -1e9)
        mixed = torch.softmax(scores, -1) @ value
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))


class GptLike(nn.Module):
    """Decoder that gives the next token's scores at each position.

    (batch, time) int → (batch, time, 200) float
    """

    def __init__(self, width: int = 64, layers: int = 2):
        super().__init__()
        self.tokens = nn.Embedding(200, width)
        self.positions = nn.Embedding(32, width)
        self.blocks = nn.Sequential(*(CausalBlock(width, 4, 32) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 200, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.tokens(tokens) + self.positions(places)
        return self.head(self.norm(self.blocks(x)))


class RootMeanSquareNorm(nn.Module):
    """Normalization without a mean, as decoders have it: (…, width) float → (…, width) float."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class SharedKeysAttention(nn.Module):
    """Causal attention of rotated queries and keys, whose keys and values several heads share.

    Parameters
    ----------
    width : of the stream, which the features of all heads make up.
    heads : of the queries.
    shared : heads of keys and values.
    fused : whether PyTorch's own function multiplies.
    """

    def __init__(self, width: int, heads: int, shared: int, fused: bool):
        super().__init__()
        self.heads, self.shared, self.size, self.fused = heads, shared, width // heads, fused
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, shared * self.size, bias=False)
        self.value = nn.Linear(width, shared * self.size, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, width = x.shape
        query = self.query(x).view(batch, time, self.heads, self.size).transpose(1, 2)
        key = self.key(x).view(batch, time, self.shared, self.size).transpose(1, 2)
        value = self.value(x).view(batch, time, self.shared, self.size).transpose(1, 2)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        if past:
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        keys, values = self.repeat(key), self.repeat(value)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, keys, values, mask)
        else:
            scores = query @ keys.transpose(-2, -1) / self.size**0.5
            mixed = torch.softmax(scores + mask, -1) @ values
        return self.output(mixed.transpose(1, 2).reshape(batch, time, width)), key, value

    def repeat(self, x: Tensor) -> Tensor:
        """(batch, shared, time, size) → (batch, heads, time, size), each for the heads it serves"""
        batch, shared, time, size = x.shape
        repeated = x[:, :, None].expand(batch, shared, self.heads // shared, time, size)
        return repeated.reshape(batch, self.heads, time, size)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the two halves of features, (…, time, size), by the angles of their positions."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


class Decoder(nn.Module):
    """Decoder with rotary embeddings, gated MLPs and four heads for each of two keys.

    (batch, time) int → (batch, time, 200) float; a cached one also takes, for each of two layers,
    the keys and values of earlier steps, (batch, 2, past, 6) float, and returns them with its own.
    """

    def __init__(self, cached: bool = False):
        super().__init__()
        width, heads, shared = 48, 8, 2
        self.cached = cached
        self.tokens = nn.Embedding(200, width)
        self.attention_norm = nn.ModuleList(RootMeanSquareNorm(width) for _ in range(2))
        self.attention = nn.ModuleList(
            SharedKeysAttention(width, heads, shared, fused=cached) for _ in range(2)
        )
        self.norm = nn.ModuleList(RootMeanSquareNorm(width) for _ in range(2))
        self.gate = nn.ModuleList(nn.Linear(width, 80, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 80, bias=False) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(80, width, bias=False) for _ in range(2))
        self.last_norm = RootMeanSquareNorm(width)
        self.head = nn.Linear(width, 200, bias=False)
        steps = torch.arange(0, width // heads, 2) / (width // heads)
        self.register_buffer("frequencies", 10000.0**-steps)

    def forward(self, tokens: Tensor, *caches: Tensor) -> Tensor | tuple[Tensor, ...]:
        time, past = tokens.shape[1], caches[0].shape[2] if self.cached else 0
        angles = torch.outer(torch.arange(past, past + time).float(), self.frequencies)
        angles = torch.cat((angles, angles), -1)
        mask = torch.full((time, past + time), float("-inf")).triu(past + 1)
        x, states = self.tokens(tokens), []
        for i, attention in enumerate(self.attention):
            mixed, *new = attention(
                self.attention_norm[i](x),
                (angles.cos(), angles.sin()),
                mask,
                caches[2 * i : 2 * i + 2],
            )
            states += new
            x = x + mixed
            inner = self.norm[i](x)
            x = x + self.down[i](functional.silu(self.gate[i](inner)) * self.up[i](inner))
        logits = self.head(self.last_norm(x))
        return (logits, *states) if self.cached else logits


class TiedLinear(nn.Module):
    """One linear layer used at two depths.

    (batch, 20) float → (batch, 5) float
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(20, 48)
        self.tied = nn.Linear(48, 48)
        self.between = nn.Linear(48, 48)
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.tied(functional.relu(self.first(x))))
        x = functional.relu(self.tied(functional.relu(self.between(x))))
        return self.last(x)


class TiedEmbedding(nn.Module):
    """The embedding table is the output projection too.

    (batch, time) int → (batch, 120) float
    """

    def __init__(self, width: int = 48):
        super().__init__()
        self.embedding = nn.Embedding(120, width)
        self.recurrent = nn.GRU(width, 40, batch_first=True)
        self.mix = nn.Linear(40, width)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return functional.linear(torch.tanh(self.mix(states[:, -1])), self.embedding.weight)


class ConvTwice(nn.Module):
    """One convolution applied twice in a row, as in networks unrolled over time.

    (batch, 3, height, width) float → (batch, 5) float
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.tied = nn.Conv2d(24, 24, 3, padding=1)
        self.widen = nn.Conv2d(24, 40, 3, stride=2, padding=1)
        self.classifier = nn.Linear(40, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.stem(image))
        x = functional.relu(self.tied(x))
        x = functional.relu(self.tied(x))
        return self.classifier(functional.relu(self.widen(x)).mean((2, 3)))


class SmoothUnit(nn.Module):
    """Convolution, batch normalization and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3×3 units with an optional shortcut."""

    def __init__(self, width: int, shortcut: bool):
        super().__init__()
        self.first = SmoothUnit(width, width, 3)
        self.second = SmoothUnit(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class SplitStage(nn.Module):
    """Split in two halves; one runs through bottlenecks, and all results are concatenated.

    The stage that its authors call C2f.
    """

    def __init__(self, inputs: int, outputs: int, depth: int = 1, shortcut: bool = True):
        super().__init__()
        half = outputs // 2
        self.enter = SmoothUnit(inputs, outputs)
        self.blocks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))
        self.leave = SmoothUnit((2 + depth) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class FastPyramid(nn.Module):
    """Three poolings in a row, concatenated with their input: SPPF."""

    def __init__(self, width: int):
        super().__init__()
        self.enter = SmoothUnit(width, width // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = SmoothUnit(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class DetectHead(nn.Module):
    """Boxes as expected distances over `bins`, and class scores, of three feature maps.

    The anchor points and strides are constants, for an image of a fixed size.
    """

    def __init__(self, widths: tuple[int, ...], classes: int, size: int, bins: int = 16):
        super().__init__()
        self.classes = classes
        self.bins = bins
        self.boxes = nn.ModuleList(self._branch(width, 32, 4 * bins) for width in widths)
        self.scores = nn.ModuleList(self._branch(width, 40, classes) for width in widths)
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False)
        self.expectation.weight.data = torch.arange(bins).float().reshape(1, bins, 1, 1)
        points, strides = [], []
        for stride in (8, 16, 32):
            place = torch.arange(size // stride) + 0.5
            y, x = torch.meshgrid(place, place, indexing="ij")
            points.append(torch.stack((x.flatten(), y.flatten())))
            strides.append(torch.full((1, points[-1].shape[1]), float(stride)))
        self.register_buffer("points", torch.cat(points, 1)[None])
        self.register_buffer("strides", torch.cat(strides, 1)[None])

    @staticmethod
    def _branch(inputs: int, width: int, outputs: int) -> nn.Module:
        last = nn.Conv2d(width, outputs, 1)
        nn.init.normal_(last.weight, std=4 / width**0.5)
        return nn.Sequential(SmoothUnit(inputs, width, 3), SmoothUnit(width, width, 3), last)

    def forward(self, features: list[Tensor]) -> Tensor:
        rows = 4 * self.bins + self.classes
        maps = [
            torch.cat((boxes(x), scores(x)), 1).view(x.shape[0], rows, -1)
            for x, boxes, scores in zip(features, self.boxes, self.scores, strict=True)
        ]
        distances, scores = torch.cat(maps, 2).split((4 * self.bins, self.classes), 1)
        bins = distances.view(distances.shape[0], 4, self.bins, -1).transpose(1, 2)
        near, far = self.expectation(bins.softmax(1)).flatten(1, 2).chunk(2, 1)
        low, high = self.points - near, self.points + far
        boxes = torch.cat(((low + high) / 2, high - low), 1) * self.strides
        return torch.cat((boxes, scores.sigmoid()), 1)


class Yolo(nn.Module):
    """Detector with split stages, a pyramid neck down and up, and three heads.

    (batch, 3, 128, 128) float → (batch, 4 + 6, 336) float
    """

    def __init__(self, classes: int = 6, size: int = 128):
        super().__init__()
        self.stem = nn.Sequential(
            SmoothUnit(3, 16, 3, 2), SmoothUnit(16, 24, 3, 2), SplitStage(24, 24)
        )
        self.stage3 = nn.Sequential(SmoothUnit(24, 32, 3, 2), SplitStage(32, 32, 2))
        self.stage4 = nn.Sequential(SmoothUnit(32, 48, 3, 2), SplitStage(48, 48, 2))
        self.stage5 = nn.Sequential(SmoothUnit(48, 64, 3, 2), SplitStage(64, 64), FastPyramid(64))
        self.up = nn.Upsample(scale_factor=2)
        self.merge4 = SplitStage(64 + 48, 48, shortcut=False)
        self.merge3 = SplitStage(48 + 32, 32, shortcut=False)
        self.down4 = SmoothUnit(32, 32, 3, 2)
        self.join4 = SplitStage(32 + 48, 48, shortcut=False)
        self.down5 = SmoothUnit(48, 48, 3, 2)
        self.join5 = SplitStage(48 + 64, 64, shortcut=False)
        self.head = DetectHead((32, 48, 64), classes, size)

    def forward(self, image: Tensor) -> Tensor:
        x3 = self.stage3(self.stem(image))
        x4 = self.stage4(x3)
        x5 = self.stage5(x4)
        y4 = self.merge4(torch.cat((self.up(x5), x4), 1))
        z3 = self.merge3(torch.cat((self.up(y4), x3), 1))
        z4 = self.join4(torch.cat((self.down4(z3), y4), 1))
        z5 = self.join5(torch.cat((self.down5(z4), x5), 1))
        return self.head([z3, z4, z5])


class Conv1d(nn.Module):
    """Classifier of signals: strided, separable with a shortcut, dilated, gated.

    (batch, 2, time) float → (batch, 5) float
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(2, 24, 9, 2, 4, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2)
        )
        self.separable = nn.Sequential(
            nn.Conv1d(24, 24, 5, padding=2, groups=24, bias=False),
            nn.BatchNorm1d(24),
            nn.Conv1d(24, 24, 1),
            nn.ReLU(),
        )
        self.dilated = nn.Sequential(
            nn.Conv1d(24, 32, 3, padding=2, dilation=2), nn.LeakyReLU(0.1), nn.AvgPool1d(2)
        )
        self.gate = nn.Conv1d(32, 64, 1)
        self.norm = nn.GroupNorm(4, 32)
        self.classifier = nn.Linear(32, 5)

    def forward(self, signal: Tensor) -> Tensor:
        x = self.stem(signal)
        x = self.dilated(x + self.separable(x))
        x = self.norm(functional.glu(self.gate(x), 1))
        return self.classifier(x.mean(2))


class AttentionMix(nn.Module):
    """Grouped convolution, channel attention and spatial self-attention, by `torch.einsum`.

    (batch, 3, height, width) float → (batch, 5) float
    """

    def __init__(self, width: int = 32, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.stem = normalized(3, width, 3, 2)
        self.grouped = nn.Sequential(
            normalized(width, width, 1),
            normalized(width, width, 3, groups=4),
            nn.Conv2d(width, width, 1, bias=False),
            nn.InstanceNorm2d(width, affine=True),
        )
        self.squeeze = nn.Linear(width, width // 4)
        self.excite = nn.Linear(width // 4, width)
        self.mixed = nn.Conv2d(width, 3 * width, 1)
        self.output = nn.Conv2d(width, width, 1)
        self.slope = nn.PReLU(width)
        self.classifier = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.grouped(x)
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3))))))
        x = functional.relu(x + torch.einsum("bchw,bc->bchw", y, gate))
        batch, width, high, wide = x.shape
        query, key, value = (
            part.reshape(batch, self.heads, width // self.heads, high * wide)
            for part in self.mixed(x).chunk(3, 1)
        )
        weight = torch.einsum("bhdi,bhdj->bhij", query, key) * (width // self.heads) ** -0.5
        mixed = torch.einsum("bhij,bhdj->bhdi", weight.softmax(-1), value)
        x = self.slope(x + self.output(mixed.reshape(batch, width, high, wide)))
        return self.classifier(x.amax((2, 3)))


class TwoInputs(nn.Module):
    """An image and a vector, joined by concatenation and by a product; two outputs.

    (batch, 3, height, width) float, (batch, 10) float → (batch, 4) float, (batch, 1) float
    """

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(normalized(3, 16, 3, 2), normalized(16, 24, 3, 2))
        self.vector = nn.Sequential(nn.Linear(10, 24), nn.Tanh())
        self.classifier = nn.Linear(48, 4)
        self.regressor = nn.Linear(24, 1)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x = self.image(image).mean((2, 3))
        y = self.vector(vector)
        return self.classifier(torch.cat((x, y), 1)), self.regressor(x * y)


class GatedResidual(nn.Module):
    """Dilated convolutions with gates, whose outputs are summed up beside a residual stream.

    (batch, width, time) float → the same
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.width = width
        self.inner = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(layers)
        )
        # The last one has nothing to hand on.
        self.outer = nn.ModuleList(
            nn.Conv1d(width, 2 * width if i < layers - 1 else width, 1) for i in range(layers)
        )

    def forward(self, stream: Tensor) -> Tensor:
        total = torch.zeros_like(stream)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            value, gate = inner(stream).split(self.width, dim=1)
            *onward, aside = outer(value.tanh() * gate.sigmoid()).split(self.width, dim=1)
            total = total + aside
            stream = sum(onward, stream)
        return total


class Speaker(nn.Module):
    """Speech from text, as long as what is said: data decide the size of everything behind.

    (batch, time) int64 → (batch, 1, samples) float
    """

    def __init__(self, vocabulary: int = 40, width: int = 24):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.Sequential(nn.Conv1d(width, 32, 3, padding=1), nn.ReLU())
        self.encoded = nn.Conv1d(32, width, 3, padding=1)
        self.duration = nn.Sequential(nn.Conv1d(width, 16, 1), nn.ReLU(), nn.Conv1d(16, 1, 1))
        self.before = nn.Conv1d(width, 20, 1)
        self.gated = GatedResidual(20, 2)
        self.up = nn.ConvTranspose1d(20, 12, 8, stride=4, padding=2)
        self.wave = nn.Conv1d(12, 1, 7, padding=3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.encoded(self.encoder(self.embedding(tokens).transpose(1, 2)))
        frames = torch.floor(6 * (9 * self.duration(x)).sigmoid()).squeeze(1) + 1
        ends = frames.cumsum(1)
        times = torch.arange(ends[:, -1].max().long(), device=tokens.device)
        spoken = times[None, :, None] < ends[:, None]
        before = times[None, :, None] < (ends - frames)[:, None]
        path = spoken.to(x.dtype) - before.to(x.dtype)
        spread = torch.matmul(path, x.transpose(1, 2)).transpose(1, 2)
        return self.wave(functional.leaky_relu(self.up(self.gated(self.before(spread)))))


class TwoStage(nn.Module):
    """Detector that looks again at the boxes that it keeps: data decide how many.

    (2, 3, height, width) float → (boxes, 4) float, (boxes, 4) float
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = nn.Sequential(normalized(3, 16, stride=2), normalized(16, 24, stride=2))
        self.features = nn.Conv2d(24, width, 3, padding=1)
        self.propose = nn.Sequential(nn.Conv2d(width, 16, 3, padding=1), nn.ReLU())
        self.proposals = nn.Conv2d(16, 5, 1)
        self.head = nn.Sequential(nn.Linear(width * 9, 40), nn.ReLU(), nn.Linear(40, 28), nn.ReLU())
        self.classes = nn.Linear(28, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.stem(image))
        found = self.proposals(self.propose(features)).flatten(2).transpose(1, 2)
        kept = []
        for number in range(image.shape[0]):
            scores, rows = found[number, :, 0].topk(12)
            sides = 6 * found[number, rows, 1:].sigmoid()
            wide = features.shape[-1]
            middle = torch.stack([rows % wide, rows // wide], 1).to(image.dtype)
            boxes = torch.cat([middle - sides[:, :2], middle + sides[:, 2:]], 1)
            kept.append(boxes[torchvision.ops.nms(boxes, scores, 0.3)])
        boxes = torch.cat(kept)
        seen = torchvision.ops.roi_align(features, kept, 3, sampling_ratio=2)
        return boxes, self.classes(self.head(seen.flatten(1)))
