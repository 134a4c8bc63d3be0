"""Examples: what `pretrain` is told, and where errors count more, the places of subjects in latents."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_config

from cinema_jax.config.augment import AugmentConfig
from cinema_jax.data.example import Reference
from cinema_jax.data.pipeline import Examples, covered
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.training.stages import STAGES


def test_a_latent_is_covered_as_far_as_the_boxes_of_its_frames_reach():
    boxes = np.zeros((9, 2, 4), np.float32)
    boxes[0, 0] = (0.0, 0.0, 0.5, 0.25)  # two of four columns, one of four rows
    boxes[1:5, 1] = (0.125, 0.0, 0.25, 1.0)  # the right half of the first column
    boxes[5:7, 0] = boxes[5:7, 1] = (0.75, 0.75, 1.5, 1.5)  # the last corner, in half of the frames, twice
    expected = np.zeros((3, 4, 4))
    expected[0, 0, :2] = 1
    expected[1, :, 0] = 0.5
    expected[2, 3, 3] = 0.5
    np.testing.assert_allclose(covered(boxes, (3, 4, 4)), expected, atol=1e-6)
    np.testing.assert_allclose(covered(boxes[:1], (1, 4, 4)), expected[:1], atol=1e-6)


def weighted(tmp_path, weight: float) -> Run:
    config = tiny_config()
    return Run(dataclasses.replace(config, flow=dataclasses.replace(config.flow, subject_weight=weight)), tmp_path)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_weighs_subjects_and_evaluation_does_not(tmp_path, stage):
    latents = np.zeros((2, 2, 4, 4, 4), np.float32)
    for weight, augment in ((4.0, True), (4.0, False), (1.0, True)):
        run = weighted(tmp_path, weight)
        examples = Examples(run.source("train"), run.preprocessor(), range(2), latents, augment=augment)
        arrays = STAGES[stage].example(examples, 1, np.random.default_rng(0))
        assert ("error_weights" in arrays) == (weight != 1 and augment)
        if "error_weights" in arrays:
            assert arrays["error_weights"].shape == (2, 4, 4)
            assert 1 <= arrays["error_weights"].min() < 2 < 3 < arrays["error_weights"].max() <= 4


def test_a_source_that_does_not_know_its_subjects_is_refused(tmp_path):
    class Plain:
        """The critters without their places."""

        def __init__(self, source):
            self.video, self.frame, self.id = source.video, source.frame, source.id
            self.caption, self.conditions = source.caption, source.conditions

        def __len__(self):
            return 2

    run = weighted(tmp_path, 2.0)
    examples = Examples(Plain(run.source("train")), run.preprocessor(), range(2), np.zeros((2, 2, 4, 4, 4), np.float32))
    with pytest.raises(InputError, match="subject_weight is 2"):
        examples.pretrain(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("prompts", "plots", "augment", "told"),
    [(0.0, 0.0, True, "caption"), (1.0, 0.0, True, "prompt"), (0.0, 1.0, True, "plot"), (0.5, 0.5, False, "caption")],
)
def test_pretraining_is_told_captions_prompts_or_plots(tmp_path, monkeypatch, prompts, plots, augment, told):
    config = tiny_config()
    pretrain = dataclasses.replace(config.pretrain, references=1.0, prompts=prompts, plots=plots)
    condition = dataclasses.replace(config.condition, text_dropout=0.0, joint_dropout=0.0)
    run = Run(dataclasses.replace(config, pretrain=pretrain, condition=condition), tmp_path)
    source, preprocessor = run.source("train"), run.preprocessor()
    examples = Examples(source, preprocessor, range(8), np.zeros((8, 2, 4, 4, 4), np.float32), augment=augment)
    made, draw = [], source.conditions
    monkeypatch.setattr(source, "conditions", lambda *arguments: made.append(draw(*arguments)) or made[-1])
    for row in range(8):
        arrays = examples.pretrain(row, np.random.default_rng(row))
        assert np.array_equal(arrays["caption_tokens"], preprocessor.text(getattr(made[row], told))[0])
        assert arrays["entity_lengths"] == len(source.scene(row).actors)


@pytest.mark.parametrize("background", [True, False])
def test_the_background_is_kept_only_where_there_is_one(tmp_path, background):
    config = tiny_config()
    data = dataclasses.replace(config.data, keep_background=1.0, augment=AugmentConfig.none())
    run = Run(dataclasses.replace(config, data=data), tmp_path)
    source = run.source("train")
    conditions = source.conditions(0, np.random.default_rng(0))
    references = tuple(dataclasses.replace(each, background=background) for each in conditions.references)
    conditions = dataclasses.replace(conditions, references=references)
    augmented = Examples(source, run.preprocessor(), range(1))._augmented(conditions, np.random.default_rng(0))
    assert [reference.mask is None for reference in augmented.references] == [background] * len(references)


def test_the_llm_reads_the_pictures_in_the_order_of_the_entities_and_both_without_their_background(tmp_path):
    run = Run(tiny_config(), tmp_path)
    preprocessor, colours = run.preprocessor(), [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    shown = [np.where(mask[..., None] > 0, np.uint8(colour), np.uint8(255)) for colour in colours]
    references = [Reference(np.full((32, 32, 3), x, np.uint8), mask, str(i)) for i, x in enumerate(colours)]
    arrays = preprocessor.conditions("they meet", references)
    for number, picture in enumerate(shown, start=1):
        alone = preprocessor.processor("", [picture])
        read = arrays["patches"][arrays["patch_segments"] == number]
        np.testing.assert_array_equal(read, alone["patches"][alone["patch_segments"] == 1][: len(read)])
        box = arrays["references"][number - 1]
        np.testing.assert_array_equal(np.unique(box.reshape(-1, 3), axis=0), sorted({(255,) * 3, colours[number - 1]}))


def test_plots_of_a_source_that_has_none_are_refused(tmp_path, monkeypatch):
    config = tiny_config()
    pretrain = dataclasses.replace(config.pretrain, references=1.0, plots=1.0)
    run = Run(dataclasses.replace(config, pretrain=pretrain), tmp_path)
    source = run.source("train")
    draw = source.conditions
    monkeypatch.setattr(source, "conditions", lambda *arguments: dataclasses.replace(draw(*arguments), plot=None))
    examples = Examples(source, run.preprocessor(), range(2), np.zeros((2, 2, 4, 4, 4), np.float32))
    with pytest.raises(InputError, match="plots is 1; only"):
        examples.pretrain(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("stage", "own", "shares"),
    [
        ("finetune", (), (0.1, 0.2, 0.3)),
        ("finetune", (0.4, 0.0, 0.05), (0.4, 0.0, 0.05)),
        ("align", (), (0.1, 0.2, 0.3)),
    ],
)
def test_text_references_and_both_are_dropped_as_often_as_asked_and_never_in_evaluation(tmp_path, stage, own, shares):
    config = tiny_config()
    condition = dataclasses.replace(config.condition, text_dropout=0.1, reference_dropout=0.2, joint_dropout=0.3)
    finetune = dataclasses.replace(config.finetune, dropout=own)
    run = Run(dataclasses.replace(config, condition=condition, finetune=finetune), tmp_path)
    examples, rng = Examples(run.source("train"), run.preprocessor(), range(2)), np.random.default_rng(0)
    dropped = np.array([examples._drop(stage, rng) for _ in range(20_000)])
    found = [(dropped == which).all(axis=1).mean() for which in ((True, False), (False, True), (True, True))]
    np.testing.assert_allclose(found, shares, atol=0.01)
    held_out = dataclasses.replace(examples, augment=False)
    assert held_out._drop(stage, rng) == (False, False)


# Subjects (width, height, left, top) in pictures (width, height): photographs with a subject far from filling them.
SUBJECTS = [((1280, 720), (200, 360, 700, 200)), ((1920, 1080), (160, 300, 0, 780)), ((480, 640), (470, 600, 5, 20))]
SUBJECTS += [((300, 300), (40, 20, 130, 140))]


def shown(box):
    """Width and height of what is not white."""
    rows, columns = np.nonzero((box < 250).any(-1))
    return np.ptp(columns) + 1, np.ptp(rows) + 1


@pytest.mark.parametrize(("size", "place"), SUBJECTS)
def test_a_subject_is_as_large_in_training_as_at_generation_for_both_readers(tmp_path, size, place):
    width, height, left, top = place
    mask = np.zeros(size[::-1], np.uint8)
    mask[top : top + height, left : left + width] = 255
    reference = Reference(np.full((*mask.shape, 3), 90, np.uint8), mask, "a")
    config = tiny_config()
    augment = dataclasses.replace(AugmentConfig.none(), max_side=720)
    data = dataclasses.replace(config.data, crop_references=True, keep_background=0.0, augment=augment)
    data = dataclasses.replace(data, reference_height=480, reference_width=480)
    run = Run(dataclasses.replace(config, data=data), tmp_path)
    source, preprocessor = run.source("train"), run.preprocessor()
    told = dataclasses.replace(source.conditions(0, np.random.default_rng(0)), references=(reference,))
    trained = Examples(source, preprocessor, range(1))._augmented(told, np.random.default_rng(0)).references
    training, generation = preprocessor.laid_out("a", trained), preprocessor.conditions("a", (reference,))
    sizes = [shown(arrays["references"][0]) for arrays in (training, generation)]
    np.testing.assert_allclose(*sizes, atol=1)
    # It fills its place but for the margin, or is enlarged three times.
    assert max(sizes[0]) >= min(0.9 * 480, 2.9 * max(width, height))
    # The LLM looks at the same crop: most of what it sees is the subject.
    for arrays in (training, generation):
        patches = arrays["patches"][arrays["patch_segments"] == 1]
        # Normalised, white is about 2.
        assert (patches < 1).mean() > 0.75


def test_without_cropping_the_readers_see_what_the_packaged_demo_was_trained_on(tmp_path):
    mask = np.zeros((100, 100), np.uint8)
    mask[40:50, 40:60] = 255
    reference = Reference(np.full((100, 100, 3), 90, np.uint8), mask, "a")
    preprocessor = Run(tiny_config(), tmp_path).preprocessor()
    assert preprocessor.cropped(reference) is reference
    assert shown(preprocessor.conditions("a", (reference,))["references"][0]) == (20, 10)


@pytest.mark.parametrize(("captions", "augment"), [(0.0, True), (0.5, True), (1.0, True), (1.0, False)])
def test_finetune_reads_captions_as_often_as_asked_and_prompts_when_it_is_evaluated(
    tmp_path, monkeypatch, captions, augment
):
    config = tiny_config()
    condition = dataclasses.replace(config.condition, text_dropout=0.0, reference_dropout=0.0, joint_dropout=0.0)
    finetune = dataclasses.replace(config.finetune, captions=captions)
    run = Run(dataclasses.replace(config, condition=condition, finetune=finetune), tmp_path)
    source, preprocessor = run.source("train"), run.preprocessor()
    examples = Examples(source, preprocessor, range(4), np.zeros((4, 2, 4, 4, 4), np.float32), augment=augment)
    made, read, draw = [], [], source.conditions
    monkeypatch.setattr(source, "conditions", lambda *arguments: made.append(draw(*arguments)) or made[-1])
    monkeypatch.setattr(Preprocessor, "laid_out", lambda _, text, references, shown: read.append(text) or {})
    for seed in range(100):
        examples.finetune(0, np.random.default_rng(seed))
    of_captions = np.mean([text == told.caption for text, told in zip(read, made, strict=True)])
    assert of_captions == pytest.approx(captions * augment, abs=0.15)
    assert all(text in (told.caption, told.prompt) for text, told in zip(read, made, strict=True))


def test_what_is_cut_out_of_the_clip_itself_is_augmented_by_rules_of_its_own(tmp_path):
    config = tiny_config()
    flipped = dataclasses.replace(AugmentConfig.none(), flip=1.0)
    data = dataclasses.replace(
        config.data, keep_background=0.0, augment=AugmentConfig.none(), augment_same_clip=flipped
    )
    run = Run(dataclasses.replace(config, data=data), tmp_path)
    source = run.source("train")
    examples, told = Examples(source, run.preprocessor(), range(2)), source.conditions(0, np.random.default_rng(0))
    for same_clip in (False, True):
        references = tuple(dataclasses.replace(each, same_clip=same_clip) for each in told.references)
        changed = examples._augmented(dataclasses.replace(told, references=references), np.random.default_rng(0))
        for before, after in zip(references, changed.references, strict=True):
            np.testing.assert_array_equal(after.image, before.image[:, ::-1] if same_clip else before.image)


def test_the_llms_input_has_no_room_for_absent_references_and_as_much_as_ever_for_each_and_for_the_text(tmp_path):
    config = tiny_config()
    sizes = tuple((5, 32, 32, references) for references in (3, 2, 1))
    data = dataclasses.replace(config.data, buckets=sizes)
    run = Run(dataclasses.replace(config, data=data), tmp_path)
    whole = run.preprocessor()
    references = run.source("train").conditions(0, np.random.default_rng(0)).references
    for bucket, (*_, count) in zip(run.buckets, sizes, strict=True):
        small, shown = bucket.preprocessor(), (references * 3)[:count]
        ours, theirs = (each.conditions("they meet", shown) for each in (small, whole))
        # Patches of 8 x 8 pixels, of which a picture has at most 32 x 32.
        absent = (3 - count) * 16
        assert len(theirs["patches"]) - len(ours["patches"]) == absent
        assert len(theirs["tokens"]) - len(ours["tokens"]) == absent // 4
        assert ours["lengths"] == theirs["lengths"]
        for name in ("tokens", "patches", "patch_segments", "patch_positions"):
            np.testing.assert_array_equal(ours[name], theirs[name][: len(ours[name])])
        # What is cut off is padding.
        assert not theirs["patch_segments"][len(ours["patches"]) :].any()
