"""Tests that training images are augmented, each by its own draws, and alike for all methods of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from tensorbench.tasks import ImageSplit
from tensorbench.training.augmentation import CROP_MARGIN, JITTER, JITTERED, augmenter
from tensorbench.training.seeding import generator, lent
from tensorbench.training.trial import Resources, run_trial

from ..toy_suites import VISION, plan


def images(count: int = 200, side: int = 16) -> Tensor:
    """Returns distinct images. None is its own mirror image."""
    drawn = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, 3, side, side), generator=drawn, dtype=torch.uint8)


def augmented(*names: str, seed: int = 0) -> Tensor:
    return augmenter(names, generator(seed, "augmentation"))(images())


def by_torchvision(names: Sequence[str], pixels: Tensor) -> Tensor:
    """Returns images that torchvision's own transforms changed one after the other, with the same draws."""
    side = pixels.shape[-1]
    transforms = {
        "flip": v2.RandomHorizontalFlip(),
        "crop": v2.RandomCrop(side, padding=side // CROP_MARGIN, padding_mode="reflect"),
        "colour_jitter": v2.RandomApply([v2.ColorJitter(*[JITTER] * 4)], p=JITTERED),
    }
    transform = v2.Compose([transforms[name] for name in names])
    with lent(generator(0, "augmentation")):
        return torch.stack([transform(image) for image in pixels])


def test_about_half_of_the_images_are_flipped_each_by_its_own_draw() -> None:
    before, after = images(), augmented("flip")
    flipped = [torch.equal(image.flip(-1), other) for image, other in zip(before, after, strict=True)]
    kept = [torch.equal(image, other) for image, other in zip(before, after, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 70 < sum(flipped) < 130


def test_about_half_of_the_images_change_colour_and_no_two_alike() -> None:
    before, after = images(), augmented("colour_jitter")
    assert after.dtype == torch.uint8
    changed = (before != after).flatten(1).any(1)
    assert 70 < int(changed.sum()) < 130
    ratio = [
        a.float().mean() / b.float().mean() for a, b in zip(after[changed], before[changed], strict=True)
    ]
    assert len({round(float(r), 4) for r in ratio}) > 0.9 * len(ratio)


def test_a_crop_is_a_shift_by_at_most_an_eighth_mirrored_at_the_edge() -> None:
    before, after = images(40), augmenter(["crop"], generator(0, "augmentation"))(images(40))
    wide = torch.nn.functional.pad(before.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    offsets = set()
    for image, other in zip(wide, after, strict=True):
        shifts = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 16, x : x + 16], other)
        ]
        assert len(shifts) == 1
        offsets |= set(shifts)
    assert len(offsets) > 10


@pytest.mark.parametrize("side", [6, 16, 30])
@pytest.mark.parametrize("names", [*permutations(("colour_jitter", "crop", "flip")), ("crop",)])
def test_a_batch_is_augmented_as_torchvision_does_it_image_by_image(
    names: tuple[str, ...], side: int
) -> None:
    before = images(40, side)
    # Blends of grey pixels with their grey are close to integers, so that their rounding shows.
    before[::2, 1:] = before[::2, :1]
    after = augmenter(names, generator(0, "augmentation"))(before.clone())
    assert torch.equal(after, by_torchvision(names, before))
    assert after.is_contiguous()


def test_a_batch_is_augmented_by_fewer_operations_than_its_images() -> None:
    class Operations(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    names, before = ["colour_jitter", "flip"], images(64)
    augment = augmenter(names, generator(0, "augmentation"))
    with Operations() as batch:
        augment(before)
    with Operations() as one_by_one:
        by_torchvision(names, before)
    assert batch.count < one_by_one.count / 2


def test_augmentation_is_the_seed_s_and_touches_no_other_stream() -> None:
    state = torch.get_rng_state()
    first, repeated, other = (augmented("colour_jitter", "flip", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)


def test_a_lent_generator_goes_on_where_it_stopped() -> None:
    unlent, parts = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = torch.rand(6, generator=unlent)
    drawn = []
    for _ in range(2):
        with lent(parts):
            drawn.append(torch.rand(3))
    assert torch.equal(torch.cat(drawn), expected)


def test_methods_of_a_seed_see_the_same_augmented_images_and_only_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, Tensor]] = []
    real = ImageSplit.batch

    def batch(self: ImageSplit, indices: Tensor, augment: Any = None) -> dict[str, Tensor]:
        made = real(self, indices, augment)
        seen.append((augment is not None, made["pixel_values"].clone()))
        return made

    monkeypatch.setattr(ImageSplit, "batch", batch)
    fed = []
    for methods in (["lora"], [{"method": "tenslora", "variant": "att"}]):
        for seed in (0, 1):
            seen.clear()
            training = {**VISION["training"], "augmentation": ["flip", "crop"], "epochs": 2}
            (trial,) = plan(VISION, methods=methods, seeds=[seed], training=training).trials
            run_trial(trial, Resources("cpu"), lambda progress: None)
            trained = [pixels for augmented, pixels in seen if augmented]
            assert len(trained) == 8
            assert len(seen) > len(trained), "validation and test are not augmented"
            fed.append(torch.cat([pixels.flatten() for pixels in trained]))
    lora, lora_1, tensor, tensor_1 = fed
    assert torch.equal(lora, tensor)
    assert torch.equal(lora_1, tensor_1)
    assert not torch.equal(lora, lora_1)
