"""Transfer: begin a run with the weights of another network, by the names of their tensors.

`match` compares names and shapes, `describe` puts the result in a table and its reasons in words, and `copy_weights`
carries it out. Tensors without a counterpart of the same shape keep their random weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.text import count, format_table, name_some
from slices.schema import Schema
from training.config import DiscriminatorConfig, GeneratorConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.networks.shapes import channels_at, resolutions_up_to
from training.source import Source
from training.state import TrainingState

ENOUGH = 0.5  # share of the parameters below which a transfer is hardly one
MOST_LINES = 30  # of skipped tensors in a description; more of them say no more


@dataclass(frozen=True)
class NewNetworks:
    """The networks of a new run."""

    schema: Schema
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    label_names: tuple[str, ...] | None = None  # names of the class labels


# --- which tensors can be copied --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matched:
    """A tensor of the new G or D, and its counterpart in the source."""

    name: str  # in the new run, such as D.b64.fromrgb.weight
    shape: tuple[int, ...]
    before: tuple[int, ...] | None  # shape in the source; None: it is not there
    is_parameter: bool  # not a buffer

    @property
    def fate(self) -> str:
        """What becomes of it: copied, skipped as the shapes differ, or fresh as there is no counterpart."""
        return "fresh" if self.before is None else "copied" if self.before == self.shape else "skipped"

    @property
    def size(self) -> int:
        """Number of its parameters."""
        return torch.Size(self.shape).numel() if self.is_parameter else 0


@dataclass(frozen=True)
class Match:
    """What becomes of all tensors of G and D. G_ema goes as G does."""

    tensors: tuple[Matched, ...]  # of the new run, in the order of the networks

    @property
    def share(self) -> float:
        """Share of the parameters of G and D that are copied."""
        return sum(one.size for one in self.of("copied")) / sum(one.size for one in self.tensors)

    def of(self, fate: str) -> list[Matched]:
        """Tensors with one fate."""
        return [one for one in self.tensors if one.fate == fate]


def match(source: Source, new: NewNetworks) -> Match:
    """Compare the tensors of a source with those of new networks, which are not built for it."""
    with torch.device("meta"):  # tensors there have shapes, but take no memory
        networks = {"G": Generator(new.generator), "D": Discriminator(new.discriminator)}
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    return Match(
        tuple(
            Matched(f"{network}.{name}", tuple(tensor.shape), shapes.get(f"{place}.{name}"), name in parameters)
            for network, module in networks.items()
            for place, parameters in [(source.name_of(network), {name for name, _ in module.named_parameters()})]
            for name, tensor in module.state_dict().items()
        )
    )


def copy_weights(state: TrainingState, source: Source) -> None:
    """Copy what matches into the networks of a state, buffers included, and clear the source's tensors.

    G and D come from the source's G and D, the average from its G_ema. Optimizers and means stay at their beginning.
    """
    for network, module in state.networks.items():
        place, expected = source.name_of(network), module.state_dict()
        found = {name: source.tensors.get(f"{place}.{name}") for name in expected}
        same = {n: tensor for n, tensor in found.items() if tensor is not None and tensor.shape == expected[n].shape}
        # Copies values into the tensors that are there, so that they keep their memory layout.
        module.load_state_dict(same, strict=False)
    source.tensors.clear()


def refuse_too_little(source: Source, new: NewNetworks, matched: Match) -> None:
    """Raise UserError if less than half of the parameters can be copied."""
    if matched.share >= ENOUGH:
        return
    told = [*explain(source, new), *advise(source, new, matched)]
    raise UserError(
        f"--transfer {source.path}: only {percent(matched.share)} of the parameters of G and D can be copied; --force "
        + "begins all the same:\n\n"
        + "\n".join(f"  {reason}" for reason in told)
    )


# --- words ------------------------------------------------------------------------------------------------------------


def describe(source: Source, new: NewNetworks, matched: Match) -> list[str]:
    """Describe a transfer for the log: lines with a table, the tensors that are skipped, and the reasons."""
    age = "" if source.kimg is None else f", trained for {source.kimg:g} kimg"
    lines = [f"Transfer from {source.path}{age}", "", *table(matched).splitlines(), ""]
    if skipped := fold(matched.of("skipped")):
        more = [f"… and {len(skipped) - MOST_LINES} more lines"] if len(skipped) > MOST_LINES else []
        lines += ["Skipped, as the shapes differ:", *(f"  {line}" for line in skipped[:MOST_LINES] + more), ""]
    if reasons := [*explain(source, new), *advise(source, new, matched)]:
        lines += ["Reasons:", *(f"  {reason}" for reason in reasons), ""]
    return [*lines, *remarks_on(source, new)]


def table(matched: Match) -> str:
    """Table of the parts of G and D: tensors by what becomes of them, and the share of the parameters copied."""
    everything = [one for one in matched.tensors if one.is_parameter]
    parts: dict[str, list[Matched]] = {}
    # In the order of each network, but mappings first.
    for one in sorted(everything, key=lambda one: (not one.name.startswith("G."), ".mapping." not in one.name)):
        parts.setdefault(part_of(one.name), []).append(one)
    rows = [_row(name, part) for name, part in [*parts.items(), ("together", everything)]]
    return format_table(("part", "tensors copied", "skipped", "fresh", "parameters", "share copied"), rows)


def _row(name: str, part: Sequence[Matched]) -> tuple[object, ...]:
    numbers = [sum(one.fate == fate for one in part) for fate in ("copied", "skipped", "fresh")]
    size = sum(one.size for one in part)
    copied = sum(one.size for one in part if one.fate == "copied")
    return (name, *(n or "" for n in numbers), f"{size:,}", percent(copied / size))


def part_of(name: str) -> str:
    """Name the part of a network that a tensor belongs to, in words: G mapping, G 64×64, D 4×4, G joint head."""
    network, _, rest = name.partition(".")
    if block := re.search(r"\bb(\d+)\.", rest):
        return f"{network} {block[1]}×{block[1]}"
    return f"{network} {'mapping' if rest.startswith('mapping') else 'joint head'}"


def percent(share: float) -> str:
    """Format a share such that only all is 100 %, and only nothing 0 %."""
    # Rounded down, so that what is less than half is told as less.
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{max(math.floor(1000 * share), 1) / 10:.1f} %"


def fold(tensors: Iterable[Matched]) -> list[str]:
    """Describe tensors that change in shape. Those that differ by number only share a line: b{4,8,16}.torgb.bias."""
    groups: dict[tuple[str, object, tuple[int, ...]], list[str]] = {}
    for one in tensors:
        number = re.search(r"(?<=\bb)\d+|(?<=\bfc)\d+", one.name)
        pattern = one.name if number is None else f"{one.name[: number.start()]}*{one.name[number.end() :]}"
        groups.setdefault((pattern, one.before, one.shape), []).append("" if number is None else number[0])
    names = [
        pattern.replace("*", numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}")
        for (pattern, _, _), numbers in groups.items()
    ]
    width = max(map(len, names), default=0)
    return [
        f"{name:<{width}}  {list(before or ())} → {list(shape)}"  # type: ignore[call-overload]
        for name, (_, before, shape) in zip(names, groups, strict=True)
    ]


def explain(source: Source, new: NewNetworks) -> list[str]:
    """Explain why tensors are skipped or fresh, in the user's words."""
    return [*_by_channels(source, new), *_by_classes(source, new), *_by_sizes(source, new)]


def _by_channels(source: Source, new: NewNetworks) -> Iterator[str]:
    before, now = source.generator, new.generator
    if before.num_contrasts + before.num_maps != now.num_contrasts + now.num_maps:
        which = f"channels, {_channels(before)} → {_channels(now)}"
        if before.num_maps == now.num_maps:
            which = f"contrasts, {before.num_contrasts} → {now.num_contrasts}"
        yield f"{which}: G's image outputs (torgb) and D's input (fromrgb) begin anew"
    if before.num_maps != now.num_maps and now.num_maps:
        yield f"label maps, {before.num_maps} → {now.num_maps}: the joint head begins anew, as the identity"


def _channels(config: GeneratorConfig) -> str:
    maps = f" and {count(config.num_maps, 'label map')}" if config.num_maps else ""
    return count(config.num_contrasts, "contrast") + maps


def _by_classes(source: Source, new: NewNetworks) -> Iterator[str]:
    before, now = source.generator.c_dim, new.generator.c_dim
    if before == now:
        return
    which = f"classes, {before or 'none'} → {now or 'none'}"
    if before and now:
        yield f"{which}: the embeddings of classes in both mappings begin anew"
    else:
        layers = "the first mapping layer, the last layer of D and the embeddings of classes"
        yield f"{which}: {layers if now else 'the first mapping layer and the last layer of D'} begin anew"


def _by_sizes(source: Source, new: NewNetworks) -> Iterator[str]:
    before, now = source.generator, new.generator
    if before.resolution < now.resolution:
        yield (
            f"resolution, {before.resolution} → {now.resolution}: larger blocks begin anew; D takes images in at "
            f"b{now.resolution}, so fromrgb of b{before.resolution} is left out"
        )
    elif before.resolution > now.resolution:
        yield (
            f"resolution, {before.resolution} → {now.resolution}: larger blocks are left out; D takes images in at "
            f"b{now.resolution}, whose fromrgb begins anew"
        )
    if before.mapping_layers != now.mapping_layers:
        fewer, deeper = sorted((before.mapping_layers, now.mapping_layers))
        which = f"fc{fewer}" + {1: "", 2: " and "}.get(deeper - fewer, " to ")
        which += f"fc{deeper - 1}" * (deeper > fewer + 1)
        one = deeper == fewer + 1
        anew, left_out = ("begins anew", "is left out") if one else ("begin anew", "are left out")
        become = anew if now.mapping_layers == deeper else left_out
        yield f"mapping depth, {before.mapping_layers} → {now.mapping_layers}: {which} {become}, and w is another"
    if _widths_differ(before, now):
        yield (
            f"feature maps, cbase {before.channel_base} and cmax {before.channel_max} → {now.channel_base} and "
            f"{now.channel_max}: layers of other widths begin anew"
        )
    if before.z_dim != now.z_dim:
        yield f"size of z, {before.z_dim} → {now.z_dim}: the first mapping layer begins anew"
    if before.w_dim != now.w_dim:
        yield f"size of w, {before.w_dim} → {now.w_dim}: the mapping and the styles of every layer (affine) begin anew"
    if source.discriminator is None:
        yield "no discriminator in the file: D begins anew, and can teach G little at first"
    elif not source.discriminator.residual and new.discriminator.residual:
        yield "D without skip connections, as in `cifar`: these begin anew"


def _widths_differ(before: GeneratorConfig, now: GeneratorConfig) -> bool:
    """Return whether a resolution that both have has other numbers of feature maps."""
    return any(
        channels_at(r, before.channel_base, before.channel_max) != channels_at(r, now.channel_base, now.channel_max)
        for r in resolutions_up_to(min(before.resolution, now.resolution))
    )


def advise(source: Source, new: NewNetworks, matched: Match) -> list[str]:
    """A list of one line if options with other values would let more be copied, else an empty one."""
    before, now = source.generator, new.generator
    wanted: dict[str, int] = {}
    if _widths_differ(before, now):
        wanted |= {"channel_base": before.channel_base, "channel_max": before.channel_max}
    wanted |= {"z_dim": before.z_dim, "mapping_layers": before.mapping_layers, "w_dim": before.w_dim}
    flags = {"channel_base": "cbase", "channel_max": "cmax", "mapping_layers": "map-depth"}
    changes: dict[str, Any] = {name: value for name, value in wanted.items() if value != getattr(now, name)}
    named = {name: value for name, value in changes.items() if name != "w_dim"}
    # --w-dim follows --z-dim unless it is given.
    if changes.keys() & {"z_dim", "w_dim"} and (before.w_dim != before.z_dim or now.w_dim != now.z_dim):
        named["w_dim"] = before.w_dim
    if not named:
        return []
    widths: dict[str, Any] = {name: value for name, value in changes.items() if name.startswith("channel_")}
    try:
        better = replace(
            new,
            generator=replace(now, **changes),
            discriminator=replace(new.discriminator, **widths),
        )
    except UserError:  # too few feature maps for a higher resolution
        return []
    share = match(source, better).share
    if share <= matched.share:
        return []
    options = " ".join(f"--{flags.get(name, name.replace('_', '-'))}={value}" for name, value in named.items())
    return [f"{options} would copy {'all' if share == 1 else percent(share)}"]


def remarks_on(source: Source, new: NewNetworks) -> list[str]:
    """Remarks on what is copied, but may mean something else."""
    told = []
    if source.name_of("G") != "G":
        told.append("The file has no G: G begins from G_ema")
    names, new_names = _channel_names(source.schema), _channel_names(new.schema)
    if len(names) == len(new_names) and names != new_names:
        renamed = [f"{a} → {b}" for a, b in zip(names, new_names, strict=True) if a != b]
        told.append(f"Channels are copied by their number: {name_some(renamed, most=16)}")
    labels, new_labels = source.label_names, new.label_names
    if labels and new_labels and len(labels) == len(new_labels) and labels != new_labels:
        renamed = [f"{a} → {b}" for a, b in zip(labels, new_labels, strict=True) if a != b]
        told.append(f"Classes are copied by their number: {name_some(renamed, most=16)}")
    return told


def _channel_names(schema: Schema) -> list[str]:
    return [*schema.contrasts, *(["background", *schema.class_names] if schema.classes else [])]
