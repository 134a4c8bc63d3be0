from dataclasses import replace

import numpy as np
import pytest

from cinema_jax.config.augment import AugmentConfig
from cinema_jax.data.augment import augment_reference
from cinema_jax.data.example import Reference
from cinema_jax.data.images import on_white

RED = (200, 30, 40)
COLOURLESS = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def disc(size=60) -> Reference:
    y, x = np.indices((size, size)) - (size - 1) / 2
    mask = ((y**2 + x**2) < (size / 3) ** 2).astype(np.uint8) * 255
    image = np.where(mask[..., None] > 0, np.uint8(RED), np.uint8((0, 90, 0))).astype(np.uint8)
    return Reference(image, mask, "a", "ball")


def test_nothing_changes_without_augmentation():
    for reference in (disc(), Reference(disc().image, None, "a", None)):
        same = augment_reference(reference, np.random.default_rng(0), AugmentConfig.none())
        assert (same.image == reference.image).all()
        assert (same.mask is None) == (reference.mask is None)
        assert same.mask is None or (same.mask == reference.mask).all()
        assert (same.subject, same.noun) == (reference.subject, reference.noun)


def test_image_and_mask_move_together():
    config = AugmentConfig(min_scale=0.5, rotation=45.0, flip=0.5, **COLOURLESS)
    for seed in range(20):
        changed = augment_reference(disc(), np.random.default_rng(seed), config)
        assert changed.mask is not None
        red = changed.image[..., 0] > changed.image[..., 1].astype(int) + 60
        assert red[changed.mask == 255].mean() > 0.98
        assert red[changed.mask == 0].mean() < 0.01


@pytest.mark.parametrize("hidden", [(0, 0, 0), (0, 255, 0)])
@pytest.mark.parametrize("size", [60, 400])
def test_nothing_that_the_mask_hides_gets_into_the_subject(hidden, size):
    reference = disc(size)
    assert reference.mask is not None
    image = np.where(reference.mask[..., None] > 0, np.uint8((250, 0, 0)), np.uint8(hidden)).astype(np.uint8)
    config = AugmentConfig(min_scale=0.5, rotation=45.0, max_side=300, **COLOURLESS)
    for seed in range(20):
        changed = augment_reference(replace(reference, image=image), np.random.default_rng(seed), config)
        # Red on white: no pixel is a darker red, but for up to 3 levels in each of three resamplings; what green and
        # blue there is comes from the white.
        shown = on_white(changed.image, changed.mask).astype(int)
        assert shown[..., 0].min() > 240
        assert np.abs(shown[..., 1] - shown[..., 2]).max() <= 3


def test_contrast_is_about_the_mean_of_what_is_shown():
    config = AugmentConfig(min_scale=1.0, rotation=0.0, brightness=0.0, contrast=0.5, saturation=0.0)
    reference = disc()
    assert reference.mask is not None
    dark, light = (
        augment_reference(
            replace(reference, image=np.where(reference.mask[..., None] > 0, reference.image, np.uint8(hidden))),
            np.random.default_rng(1),
            config,
        )
        for hidden in (0, 255)
    )
    assert np.array_equal(dark.image[reference.mask > 0], light.image[reference.mask > 0])
    assert not np.array_equal(dark.image[reference.mask > 0], reference.image[reference.mask > 0])


def test_a_scaled_subject_covers_its_share_of_the_canvas():
    config = AugmentConfig(min_scale=0.5, rotation=0.0, **COLOURLESS)
    whole = (disc().mask > 127).sum()
    shares = []
    for seed in range(200):
        changed = augment_reference(disc(), np.random.default_rng(seed), config)
        assert changed.mask is not None
        assert changed.mask.shape == (60, 60)
        shares.append((changed.mask > 127).sum() / whole)
    assert 0.24 < min(shares) < 0.35
    assert 0.85 < max(shares) < 1.02


def test_without_a_mask_what_the_picture_no_longer_covers_is_white_and_outside():
    reference = Reference(np.full((40, 60, 3), RED, np.uint8), None, "a", None)
    config = AugmentConfig(min_scale=0.7, rotation=30.0, **COLOURLESS)
    changed = augment_reference(reference, np.random.default_rng(3), config)
    assert changed.mask is not None
    assert (changed.image[changed.mask == 0] == 255).all()
    assert np.abs(changed.image[changed.mask == 255].astype(int) - RED).max() <= 2


def test_rotation_cuts_nothing_off():
    config = AugmentConfig(min_scale=1.0, rotation=90.0, **COLOURLESS)
    reference = Reference(np.full((20, 80, 3), RED, np.uint8), None, "a", None)
    for seed in range(10):
        changed = augment_reference(reference, np.random.default_rng(seed), config)
        assert changed.mask is not None
        assert abs((changed.mask > 127).sum() / 1600 - 1) < 0.06


def test_flip_mirrors_both_layers():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    mask = np.array([[255, 0, 0, 0]] * 4, np.uint8)
    config = AugmentConfig(min_scale=1.0, rotation=0.0, flip=1.0, **COLOURLESS)
    changed = augment_reference(Reference(image, mask, "a", None), np.random.default_rng(0), config)
    assert (changed.image == image[:, ::-1]).all()
    assert (changed.mask == mask[:, ::-1]).all()


def test_colours_stay_within_the_configured_factors():
    config = AugmentConfig(min_scale=1.0, rotation=0.0, brightness=0.2, contrast=0.0, saturation=0.0)
    reference = Reference(np.full((8, 8, 3), 100, np.uint8), None, "a", None)
    levels = [augment_reference(reference, np.random.default_rng(s), config).image.mean() for s in range(300)]
    assert 79 <= min(levels) < 84
    assert 116 < max(levels) <= 120


def test_photographs_are_shrunk_first_and_the_generator_advances_alike_for_all_pictures():
    large = Reference(np.zeros((600, 900, 3), np.uint8), None, "a", None)
    config = AugmentConfig(min_scale=1.0, rotation=0.0, max_side=300, **COLOURLESS)
    first, second = np.random.default_rng(5), np.random.default_rng(5)
    assert augment_reference(large, first, config).image.shape == (200, 300, 3)
    augment_reference(disc(), second, AugmentConfig())
    assert first.uniform() == second.uniform()


@pytest.mark.parametrize(
    ("field", "value"), [("min_scale", 0.0), ("min_scale", 1.5), ("rotation", -1.0), ("contrast", 1.0), ("flip", 2.0)]
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"AugmentConfig\.{field} is {value}; it must be"):
        AugmentConfig(**{field: value})


def test_a_cut_takes_up_to_so_much_off_one_side_and_never_the_whole_subject():
    config = replace(AugmentConfig.none(), crop=0.25)
    sizes, sides = [], set()
    for seed in range(60):
        changed = augment_reference(disc(), np.random.default_rng(seed), config)
        height, width = changed.image.shape[:2]
        assert 60 in (height, width)
        assert changed.mask is not None
        assert changed.mask.shape == (height, width)
        sizes.append(min(height, width))
        rows, columns = np.nonzero(changed.mask)
        sides |= {name for name, at in (("top", rows.min()), ("left", columns.min())) if at < 8}
    assert 45 <= min(sizes) < 48
    assert sides == {"top", "left"}
    corner = disc()
    assert corner.mask is not None
    corner.mask[:, 3:] = 0
    corner.mask[20:40, :3] = 255
    most = replace(config, crop=0.9)
    assert all(augment_reference(corner, np.random.default_rng(seed), most).mask.any() for seed in range(40))
