"""Networks by whose features images are compared: a small classifier trained on the data, or
Inception from the user's own file.

A Fréchet distance means nothing without the name of its features, so every network here has one.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from deepgen_ext.recipes import RecipeError, checkpoint
from deepgen_ext.recipes.batches import batch_indices, generator_for
from deepgen_ext.recipes.data import load_classes
from deepgen_ext.recipes.pictures import to_bytes

__all__ = [
    "Classifier",
    "ClassifierFeatures",
    "FeatureNetwork",
    "Features",
    "ScriptedFeatures",
    "load_feature_network",
    "save_feature_network",
    "train_classifier",
]

BATCH_SIZE = 250
LEARNING_RATE = 1e-3


class Features(NamedTuple):
    """(n, num_features), and the logits of classes (n, classes) where the network has them."""

    features: Tensor
    logits: Tensor | None


class FeatureNetwork:
    """What scores are computed by.

    Attributes:
        name: with which a score is printed: "classifier of digits", or a file's name.
    """

    name: str

    def features_of(self, levels: Tensor, n_levels: int) -> Features:
        """Of images as levels (n, C, H, W), float64 on the CPU, computed in batches.

        Raises:
            RecipeError: images that the network does not take, or no image.
        """
        if len(levels) == 0:
            raise RecipeError("no image to score")
        with torch.no_grad():
            parts = [self._batch(batch, n_levels) for batch in levels.split(BATCH_SIZE)]
        features = torch.cat([part.features.double().cpu() for part in parts])
        if parts[0].logits is None:
            return Features(features, None)
        return Features(features, torch.cat([part.logits.double().cpu() for part in parts]))

    def _batch(self, levels: Tensor, n_levels: int) -> Features:
        raise NotImplementedError


class Classifier(nn.Module):
    """Three 3x3 convolutions, two of them of stride 2, a dense layer and one of the classes.

    Its features are the dense layer's, after the ReLU, as Inception's are, in units in which they
    have a mean square of 1 over the data it was trained on.
    """

    def __init__(
        self, shape: tuple[int, int, int], n_classes: int, features: int = 128, channels: int = 32
    ) -> None:
        super().__init__()
        colors, height, width = shape
        self.convolutions = nn.Sequential(
            nn.Conv2d(colors, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        inner = 2 * channels * -(-height // 4) * -(-width // 4)
        self.dense = nn.Linear(inner, features)
        self.output = nn.Linear(features, n_classes)
        self.register_buffer("unit", torch.ones(()))

    def forward(self, x: Tensor) -> Features:
        """Of x (n, C, H, W) in [-1, 1]."""
        features = self.dense(self.convolutions(x).flatten(1)).relu()
        return Features(features / self.unit, self.output(features))

    @torch.no_grad()
    def choose_unit(self, x: Tensor) -> None:
        """After training: a network that is surer of its classes has larger features otherwise."""
        features = torch.cat([self(some).features for some in x.split(BATCH_SIZE)])
        self.unit.mul_(features.square().mean().sqrt())


class ClassifierFeatures(FeatureNetwork):
    """A trained `Classifier` with what it was trained on.

    Args:
        state: as `train_classifier` makes it and its file keeps it.
    """

    def __init__(self, state: dict, device: str = "cpu") -> None:
        self.shape, self.n_levels = tuple(state["shape"]), state["n_levels"]
        self.device = device
        self.name = f"classifier of {state['data']}"
        self.accuracy = state["accuracy"]
        self.net = Classifier(self.shape, state["n_classes"], state["features"], state["channels"])
        self.net.load_state_dict(state["parameters"])
        self.net.to(device).eval()

    def _batch(self, levels: Tensor, n_levels: int) -> Features:
        if tuple(levels.shape[1:]) != self.shape or n_levels != self.n_levels:
            raise RecipeError(
                f"the feature network, a {self.name}, takes images of {_sides(self.shape)} with "
                f"{self.n_levels} levels; these are of {_sides(levels.shape[1:])} with {n_levels}"
            )
        return self.net(_centred(levels.to(self.device), n_levels))


class ScriptedFeatures(FeatureNetwork):
    """A TorchScript file: Inception as others have saved it, or any network of the user's.

    It is called with uint8 images (n, 3, H, W) of 0 ... 255, greyscale repeated, and answers with
    features (n, F), or with (features, logits). One whose forward has an argument
    ``return_features``, as NVIDIA's ``inception-2015-12-05.pt``, is called once with it for the
    features and once without for the classes' probabilities.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.name = path.name
        self.device = device
        try:
            self.net = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise RecipeError(
                f"{path}: not a TorchScript file that can be loaded: {error}"
            ) from None
        self._answers_twice = any(
            argument.name == "return_features" for argument in self.net.forward.schema.arguments
        )

    def _batch(self, levels: Tensor, n_levels: int) -> Features:
        images = to_bytes(levels, n_levels).to(self.device)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1).contiguous()
        try:
            if self._answers_twice:
                features = self.net(images, return_features=True)
                answer = features, self.net(images).clamp(min=1e-30).log()
            else:
                answer = self.net(images)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RecipeError(
                f"the feature network {self.name} does not take uint8 images of "
                f"{_sides(images.shape[1:])}: {reason}"
            ) from None
        features, logits = answer if isinstance(answer, tuple) else (answer, None)
        if features.ndim != 2 or len(features) != len(levels):
            raise RecipeError(
                f"the feature network {self.name} must answer with features (n, F); for "
                f"{len(levels)} images it gave {tuple(features.shape)}"
            )
        return Features(features, logits)


def train_classifier(
    data_name: str,
    *,
    features: int = 128,
    channels: int = 32,
    steps: int = 1000,
    batch_size: int = 64,
    seed: int = 0,
    console: Console | None = None,
) -> dict:
    """Train a `Classifier` with Adam and a cosine schedule; its state, for `ClassifierFeatures`.

    Raises:
        RecipeError: data without classes, or vectors.
    """
    data, (train_labels, test_labels) = load_classes(data_name)
    if data.n_levels is None:
        raise RecipeError(f"--data {data_name}: a feature network is of images, not of vectors")
    n_classes = int(train_labels.max()) + 1
    torch.manual_seed(generator_for(seed, "feature network").initial_seed())
    net = Classifier(data.shape, n_classes, features, channels)
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(steps):
        chosen = batch_indices(seed, step, batch_size, len(data.train))
        logits = net(_centred(data.train[chosen], data.n_levels)).logits
        loss = F.cross_entropy(logits, train_labels[chosen])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if console is not None and (step + 1) % max(1, steps // 5) == 0:
            console.print(f"step {step + 1}/{steps}  cross-entropy {loss.item():.4f}")
    net.choose_unit(_centred(data.train, data.n_levels))
    state = {
        "kind": "feature network",
        "data": data.name,
        "shape": list(data.shape),
        "n_levels": data.n_levels,
        "n_classes": n_classes,
        "features": features,
        "channels": channels,
        "steps": steps,
        "seed": seed,
        "accuracy": 0.0,
        "parameters": net.state_dict(),
    }
    logits = ClassifierFeatures(state).features_of(data.test, data.n_levels).logits
    state["accuracy"] = (logits.argmax(1) == test_labels).double().mean().item()
    return state


def save_feature_network(path: Path, state: dict) -> None:
    """Write what `train_classifier` made, where `load_feature_network` finds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}") from None
    checkpoint.save(path, state)


def load_feature_network(path: Path, device: str = "cpu") -> FeatureNetwork:
    """Of a file of ``deepgen feature-network``, or of a TorchScript file.

    Raises:
        RecipeError: no such file, or one of another kind.
    """
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no such file; deepgen feature-network --data NAME --out {path} "
            "trains one"
        )
    if _is_script(path):
        return ScriptedFeatures(path, device)
    try:
        state = checkpoint.load(path)
    except RecipeError:
        state = {}
    if state.get("kind") != "feature network":
        raise RecipeError(
            f"{path}: not a feature network: neither a file of deepgen feature-network nor "
            "TorchScript (parameters alone do not say of what network they are)"
        )
    return ClassifierFeatures(state, device)


def _is_script(path: Path) -> bool:
    """A TorchScript archive has code beside its tensors, one of torch.save has none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _centred(levels: Tensor, n_levels: int) -> Tensor:
    return levels.float() * (2 / (n_levels - 1)) - 1


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
