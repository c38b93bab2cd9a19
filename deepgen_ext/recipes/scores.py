"""Samples against data: Fréchet and kernel distance, inception score, precision and recall of
images by the features of a network; exact Wasserstein distances of 2-d samples.

Scores of another feature network, or of other numbers of samples, are other scores: both are
always printed. FID and KID of images that the model should imitate perfectly, held-out ones, are
computed beside them as the floor.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from deepgen_ext.recipes import RecipeError, data, require
from deepgen_ext.recipes.batches import generator_for
from deepgen_ext.recipes.classes import classes_as, share_in_class
from deepgen_ext.recipes.feature_network import (
    ClassifierFeatures,
    FeatureNetwork,
    Features,
    load_feature_network,
)
from deepgen_ext.recipes.run import load_model
from deepgen_ext.recipes.trained import draw
from deepgen_ext.recipes.transport import transport_table

__all__ = [
    "Scores",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_and_recall",
    "score",
    "score_run",
]

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000  # of KID, as in Binkowski et al. 2018
MANIFOLD_SAMPLES = 5000  # of precision and recall, at most: every pair is compared
NEIGHBOURS = 3  # of precision and recall, as in Kynkaanniemi et al. 2019


@dataclass(frozen=True)
class Scores:
    """What was measured; the inception score is nan where the network has no classes."""

    frechet: float
    kernel: float
    kernel_deviation: float  # over the subsets
    inception: float
    precision: float
    recall: float
    n_real: int
    n_generated: int
    num_features: int
    in_class: float = math.nan  # the share that the network puts into its own class, if it has one


class _Given(nn.Module):
    """torchmetrics' feature extractor, where the features are known already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features (n, F).

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium", 2017.

    Raises:
        RecipeError: no more samples than features: their covariance would be singular whatever
            they are, and the distance more of the number than of the samples.
    """
    num_features = real.shape[1]
    if min(len(real), len(generated)) <= num_features:
        raise RecipeError(
            f"FID of {num_features} features needs {num_features + 1} samples or more of each "
            f"kind; there are {len(real)} real and {len(generated)} generated ones"
        )
    fid = require("torchmetrics.image.fid", "FID", extra="metrics")
    metric = fid.FrechetInceptionDistance(feature=_Given(num_features))
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return metric.compute().item()


def kernel_distance(real: Tensor, generated: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """KID: the squared maximum mean discrepancy with the kernel (a'b / F + 1)^3, unbiased.

    Binkowski et al., "Demystifying MMD GANs", 2018. Mean and deviation over 100 subsets of 1000
    samples, or of all where there are fewer.
    """
    kid = require("torchmetrics.image.kid", "KID", extra="metrics")
    size = min(KERNEL_SUBSET_SIZE, len(real), len(generated))
    with _quiet():
        metric = kid.KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # the subsets
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def inception_score(logits: Tensor) -> float:
    """IS: exp E_x KL(p(y|x) || p(y)), of classes' logits (n, classes), all samples in one split.

    Salimans et al., "Improved Techniques for Training GANs", 2016. 1 at worst, the number of
    classes at best.
    """
    inception = require("torchmetrics.image.inception", "IS", extra="metrics")
    with _quiet():
        metric = inception.InceptionScore(feature=_Given(logits.shape[1]), splits=1)
        metric.update(logits.double())
        return metric.compute()[0].item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchmetrics' warnings: that features are kept, that one split has no deviation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def precision_and_recall(
    real: Tensor, generated: Tensor, *, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """(The share of generated samples among the real ones, the share of real ones among them).

    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models",
    2019: a sample is among others if it is nearer to one of them than that one's k-th neighbour.

    Raises:
        RecipeError: no more than k samples.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise RecipeError(
            f"precision and recall with {neighbours} neighbours need more samples than that; "
            f"there are {len(real)} real and {len(generated)} generated ones"
        )
    return _share_among(generated, real, neighbours), _share_among(real, generated, neighbours)


def _share_among(samples: Tensor, others: Tensor, neighbours: int) -> float:
    # The nearest of all is the sample itself.
    radius = torch.cat(
        [
            torch.cdist(some, others).kthvalue(neighbours + 1, dim=1).values
            for some in others.split(1000)
        ]
    )
    inside = [(torch.cdist(some, others) <= radius).any(1) for some in samples.split(1000)]
    return torch.cat(inside).double().mean().item()


def score(
    real: Features, generated: Features, labels: Tensor | None = None, *, seed: int = 0
) -> Scores:
    """All scores of features of images; ``labels`` are the classes of the generated ones."""
    frechet = frechet_distance(real.features, generated.features)
    kernel = kernel_distance(real.features, generated.features, seed=seed)
    has_classes = generated.logits is not None
    return Scores(
        frechet,
        *kernel,
        inception_score(generated.logits) if has_classes else math.nan,
        *precision_and_recall(
            _some(real.features, MANIFOLD_SAMPLES, seed),
            _some(generated.features, MANIFOLD_SAMPLES, seed),
        ),
        n_real=len(real.features),
        n_generated=len(generated.features),
        num_features=real.features.shape[1],
        in_class=share_in_class(generated.logits, labels)
        if has_classes and labels is not None
        else math.nan,
    )


def _some(features: Tensor, n: int, seed: int) -> Tensor:
    """n of them by chance, or all where there are no more."""
    if len(features) <= n:
        return features
    return features[torch.randperm(len(features), generator=generator_for(seed, "some"))[:n]]


def score_run(
    run: Path,
    *,
    n: int,
    network_path: Path | None,
    split: str = "train",
    temperature: float = 1.0,
    mean: bool = False,
    seed: int = 0,
    device: str = "cpu",
    console: Console | None = None,
) -> Table:
    """Draw ``n`` samples of the run's model and score them against ``split`` of its data.

    Raises:
        RecipeError: images without a feature network, one of other images, too few samples.
    """
    model, settings, step, shape, n_levels = load_model(run, device)
    dataset = data.load(settings.data, size=settings.size)
    real = dataset.test if split == "test" else dataset.train
    if n_levels is None:
        samples = draw(model, n, temperature=temperature, seed=seed)
        return transport_table(
            dataset, samples, split, _caption(dataset, split, settings.model, step, temperature)
        )
    if network_path is None:
        raise RecipeError(
            "images are scored by the features of a network: give --feature-network; deepgen "
            f"feature-network --data {settings.data} --out FILE trains one"
        )
    network = load_feature_network(network_path, device)
    real_features = network.features_of(real, n_levels)
    labels = None
    if getattr(model, "n_classes", 0):
        labels = classes_as(dataset.labels[split == "test"], n, seed)
    samples = draw(
        model,
        n,
        temperature=temperature,
        seed=seed,
        n_levels=n_levels,
        labels=labels,
        console=console,
        **({"mean": True} if mean else {}),
    )
    scores = score(real_features, network.features_of(samples, n_levels), labels, seed=seed)
    floor = None
    if split == "train" and len(dataset.test) > scores.num_features:
        held_out = network.features_of(dataset.test, n_levels)
        known = None if labels is None else dataset.labels[1]
        floor = score(real_features, held_out, known, seed=seed)
    columns = {"generated" if not mean else "generated, means": scores}
    if floor is not None:
        columns["test split"] = floor
    return _table(columns, network, _caption(dataset, split, settings.model, step, temperature))


def feature_words(network: FeatureNetwork, num_features: int) -> str:
    """With which a score is printed: "classifier of digits, 128 features, accuracy 98.0 %"."""
    words = f"{network.name}, {num_features} features"
    if isinstance(network, ClassifierFeatures):
        words += f", accuracy {100 * network.accuracy:.1f} %"
    return words


def _table(columns: dict[str, Scores], network: FeatureNetwork, caption: str) -> Table:
    """Scores down, samples across."""
    first = next(iter(columns.values()))
    words = feature_words(network, first.num_features)
    table = Table("", *columns, box=box.SIMPLE, caption=f"{caption}; {words}")
    table.caption_justify = "left"
    name = f"({network.name}, {first.num_features} features)"
    rows: dict[str, Callable[[Scores], str]] = {
        "images": lambda s: f"{s.n_generated:,}",
        "real images": lambda s: f"{s.n_real:,}",
        f"FID {name}": lambda s: f"{s.frechet:.3f}",
        f"1000 KID {name}": lambda s: (
            f"{1000 * s.kernel:.3f} ± {1000 * s.kernel_deviation:.3f}"  # over subsets
        ),
        f"IS {name}": lambda s: "no classes" if math.isnan(s.inception) else f"{s.inception:.3f}",
        f"precision (of {MANIFOLD_SAMPLES:,} at most)": lambda s: f"{s.precision:.3f}",
        f"recall (of {MANIFOLD_SAMPLES:,} at most)": lambda s: f"{s.recall:.3f}",
    }
    if not math.isnan(first.in_class):
        rows["classified as asked"] = lambda s: f"{s.in_class:.3f}"
    for heading, value in rows.items():
        table.add_row(heading, *map(value, columns.values()))
    return table


def _caption(dataset: data.Dataset, split: str, model: str, step: int, temperature: float) -> str:
    return (
        f"{model}, step {step}, temperature {temperature:g}; real images: {dataset.name}, {split} "
        "split"
    )
