"""The embedded dataset: identities, scenes, words and references."""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cinema_jax.data.critters import Critters, count_identities, draw_identity, grammar, reference, source, vocabulary
from cinema_jax.data.critters.background import PLACES, Background
from cinema_jax.data.critters.cutout import find_cutouts, split_cutouts
from cinema_jax.data.critters.drawing import draw, through_lens
from cinema_jax.data.critters.identity import COLORS, SPECIES, SPLITS, body_split
from cinema_jax.data.critters.parts import Pose
from cinema_jax.data.critters.scene import ACTIONS, compose
from cinema_jax.data.example import Source
from cinema_jax.data.images import on_white
from cinema_jax.errors import InputError
from cinema_jax.experiment.parts import checkpoint_folder
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from configs.demo import get_config


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def test_identities_of_the_splits_never_overlap():
    keys = {split: {draw_identity(seed, split).key for seed in range(3000)} for split in SPLITS}
    for first, second in itertools.combinations(SPLITS, 2):
        assert not keys[first] & keys[second]
    assert len(keys["train"]) > 2500


def test_identity_belongs_to_the_split_that_drew_it():
    for split in SPLITS:
        assert all(draw_identity(seed, split).split == split for seed in range(300))


def test_splits_do_not_depend_on_the_process():
    assert body_split("bird", "blue", "yellow", "striped") == "validation"
    assert body_split("cat", "red", "white", "spotted") == "train"


def test_there_are_tens_of_thousands_of_nameable_identities():
    assert count_identities() > 20_000


def test_every_species_appears_in_every_split():
    for split in SPLITS:
        assert {draw_identity(seed, split).species for seed in range(400)} == set(SPECIES)


def test_equal_descriptions_mean_equal_attributes():
    described = {}
    for seed in range(3000):
        identity = draw_identity(seed)
        assert described.setdefault(identity.describe(), identity.attributes()) == identity.attributes()


def test_source_protocol_and_shapes():
    critters = Critters("validation", frames=5, height=48, width=80, size=7)
    assert isinstance(critters, Source)
    assert len(critters) == 7
    assert critters.video(3).shape == (5, 48, 80, 3)
    assert critters.id(3) != Critters("test").id(3)


def test_examples_are_the_same_in_another_process():
    here = [digest(Critters("train").video(index)) for index in range(3)]
    here += [digest(r.image) for r in Critters("train").conditions(1, np.random.default_rng(5)).references]
    code = (
        "import hashlib, numpy as np; from cinema_jax.data.critters import Critters\n"
        "d = lambda a: hashlib.sha256(a.tobytes()).hexdigest()[:16]; c = Critters('train')\n"
        "print(*[d(c.video(i)) for i in (2, 1, 0)][::-1],"
        " *[d(r.image) for r in c.conditions(1, np.random.default_rng(5)).references])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there == here


def test_seed_and_split_change_the_videos():
    videos = [Critters(split, seed=seed).video(0) for split, seed in (("train", 0), ("train", 1), ("test", 0))]
    assert len({digest(video) for video in videos}) == 3


def test_shares_say_how_many_subjects_scenes_have():
    crowds = Critters(size=300, shares=(0.1, 0.2, 0.7))
    counts = np.bincount([len(crowds.scene(index).actors) for index in range(300)], minlength=4)[1:]
    np.testing.assert_allclose(counts / 300, crowds.shares, atol=0.07)
    # Latents are kept by name: other scenes are not called the same.
    assert crowds.id(0) == "critters-0.1-0.2-0.7-train-0-00000000" != Critters().id(0)


def test_conditions_vary_with_rng():
    critters = Critters("train")
    several = [critters.conditions(4, np.random.default_rng(seed)) for seed in range(12)]
    assert len({c.prompt for c in several}) > 1
    assert len({digest(c.references[0].image) for c in several}) == 12
    assert len({tuple(sorted(r.subject for r in c.references)) for c in several}) == 1


def test_references_come_in_random_order():
    critters = Critters("train")
    index = next(index for index in range(50) if len(critters.scene(index).actors) == 3)
    orders = {
        tuple(r.subject for r in critters.conditions(index, np.random.default_rng(seed)).references)
        for seed in range(25)
    }
    assert len(orders) == 6


def test_reference_is_no_copy_of_any_frame():
    """Aligned by the best shift, the subject still differs: pose, scale, tilt and light are its own."""
    critters = Critters("train")
    for index in range(4):
        for shown in critters.conditions(index, np.random.default_rng(index)).references:
            rows, columns = np.flatnonzero(shown.mask.any(axis=1)), np.flatnonzero(shown.mask.any(axis=0))
            window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            subject, mask = shown.image[window], shown.mask[window]
            for frame in critters.video(index):
                padded = cv2.copyMakeBorder(frame, 64, 64, 64, 64, cv2.BORDER_REPLICATE)
                error = cv2.matchTemplate(padded, subject, cv2.TM_SQDIFF, mask=mask)
                assert np.sqrt(error.min() / (3 * (mask > 127).sum())) > 12  # of 255, root mean square


def test_reference_shows_the_whole_subject_and_its_mask():
    rng = np.random.default_rng(0)
    for seed in range(40):
        shown = reference(draw_identity(seed), rng)
        assert 64 <= min(shown.image.shape[:2]) <= max(shown.image.shape[:2]) <= 128
        assert shown.mask.shape == shown.image.shape[:2]
        assert 0.05 < (shown.mask > 127).mean() < 0.7
        edge = np.concatenate([shown.mask[0], shown.mask[-1], shown.mask[:, 0], shown.mask[:, -1]])
        assert (edge > 127).mean() < 0.02


def test_any_number_of_frames_shows_the_same_motion():
    few, many = Critters("train", frames=5), Critters("train", frames=17)
    for index in range(3):
        np.testing.assert_array_equal(few.video(index), many.video(index)[::4])
        np.testing.assert_array_equal(few.tracks(index).boxes, many.tracks(index).boxes[::4])


def test_larger_videos_show_the_same_scene():
    small, large = Critters("train", frames=3), Critters("train", frames=3, height=256, width=256)
    for index in range(3):
        for a, b in zip(small.video(index), large.video(index), strict=True):
            reduced = through_lens(cv2.resize(b, (64, 64), interpolation=cv2.INTER_AREA))
            assert np.abs(a.astype(int) - reduced).mean() < 6


def test_motion_is_smooth():
    critters = Critters("train", frames=33)
    for index in range(3):
        steps = np.linalg.norm(np.diff(critters.tracks(index).centers, axis=0), axis=-1)
        assert steps.max() < 10  # pixels of 64, in 1/32 of the clip


def test_captions_are_short_and_within_the_vocabulary():
    known = set(vocabulary())
    assert len(known) < 200
    critters = Critters("train")
    for index in range(150):
        story = critters.scene(index).story()
        caption = grammar.caption(story)
        assert set(grammar.words(caption)) <= known
        assert set(grammar.words(grammar.naming(story.descriptions))) <= known
        rng = np.random.default_rng(index)
        assert all(set(grammar.words(grammar.prompt(story, rng))) <= known for _ in range(4))


def test_each_word_of_a_caption_has_its_own_kind_of_meaning():
    """Place, subjects and action stand at the same positions in all captions of as many subjects."""
    critters = Critters("train")
    for index in range(150):
        story = critters.scene(index).story()
        said = grammar.words(grammar.caption(story))
        assert " ".join(said[:3]) == PLACES[story.place].words
        for number, description in enumerate(story.descriptions):
            assert " ".join(said[4 + 11 * number : 13 + 11 * number]) == description


def test_captions_describe_subjects_in_the_order_of_their_pictures():
    critters, orders = Critters("train"), set()
    for index in range(60):
        scene = critters.scene(index)
        actors = {actor.subject.key: (role, actor.subject) for role, actor in enumerate(scene.actors)}
        conditions = critters.conditions(index, np.random.default_rng(index))
        shown = [actors[picture.subject] for picture in conditions.references]
        said = " and ".join(grammar.named(subject.describe()) for _, subject in shown)
        # Whoever plays role 0, 1, 2 is told by the place of its picture.
        ordinals = ("the first", "the second", "the third")
        names = [ordinals[[role for role, _ in shown].index(role)] for role in range(len(shown))]
        told = f": {scene.story().tell(names if len(names) > 1 else ['it'])}"
        assert conditions.caption == f"{PLACES[scene.background.place].words} {said}{told}"
        assert conditions.plot == f"{PLACES[scene.background.place].words}{told}"
        orders.add(tuple(names))
    assert len(orders) == 1 + 2 + 6


def test_captions_fill_the_demos_text_tokens_at_most():
    longest = "spotted yellow and purple elephant with an orange crown"
    tokenizer, most = build_word_tokenizer(vocabulary()), get_config().condition.text_tokens
    for count, actions in ACTIONS.items():
        for action, place in itertools.product(actions, PLACES):
            story = grammar.Story(action, place, (longest,) * count, ("yellow",) * count, ("elephant",) * count)
            assert len(tokenizer(grammar.caption(story))["input_ids"]) < most


def test_only_the_order_of_the_pictures_tells_who_is_who_in_a_vague_prompt():
    critters, vague, orders = Critters("train"), 0, set()
    for index in range(60):
        scene = critters.scene(index)
        conditions = critters.conditions(index, np.random.default_rng(index))
        roles = [actor.subject.key for actor in scene.actors]
        pictures = [picture.subject for picture in conditions.references]
        assert sorted(pictures) == sorted(roles)
        if grammar.tells_who(conditions.prompt, scene.story()):
            orders.add(pictures == roles)
        else:
            vague += 1
            assert pictures == roles
    assert vague > 5
    assert orders == {True, False}


def test_prompts_are_sometimes_vague_and_sometimes_full():
    critters = Critters("train")
    stories = [critters.scene(index).story() for index in range(150)]
    prompts = [grammar.prompt(story, np.random.default_rng(index)) for index, story in enumerate(stories)]
    vague = [not set(grammar.words(prompt)) & set(SPECIES) for prompt in prompts]
    full = [bool(set(grammar.words(prompt)) & {"plain", "striped", "spotted", "patched"}) for prompt in prompts]
    assert 0.2 < np.mean(vague) < 0.5
    assert 0.1 < np.mean(full) < 0.4


def test_describe_tasks_follow_the_order_of_the_images(monkeypatch):
    critters, kinds, shown, pictures, numbered = Critters("train"), set(), [], [], 0

    def watched(subject, rng):
        shown.append(subject)
        pictures.append(reference(subject, rng))
        return pictures[-1]

    monkeypatch.setattr(source, "reference", watched)
    for seed in range(40):
        shown.clear(), pictures.clear()
        images, question, answer = critters.describe_task(seed, np.random.default_rng(seed))
        actors, nouns = [actor.subject for actor in critters.scene(seed).actors], [subject.noun for subject in shown]
        assert len(images) == len(actors)
        for image, picture in zip(images, pictures, strict=True):
            assert digest(image) in (digest(picture.image), digest(on_white(picture.image, picture.mask)))
        story, order = critters.scene(seed).story(), [actors.index(subject) for subject in shown]
        if question in grammar.QUESTIONS:
            kinds.add("naming")
            assert answer == grammar.naming([subject.describe() for subject in shown])
        elif answer == grammar.caption(story, order):
            kinds.add("caption")
        else:
            kinds.add("numbers")
            assert answer == grammar.told_by_order(story, order).removeprefix("the ")
            words = grammar.words(question)
            given = {(words[at - 1], int(word)) for at, word in enumerate(words) if word.isdigit()}
            assert given <= {(noun, number) for number, noun in enumerate(nouns, 1)}
            numbered += len(given) / len(nouns)
    assert kinds == {"naming", "caption", "numbers"}
    assert 0.3 < numbered / 20 < 0.7


def test_numbers_of_images_are_learned_where_a_prompt_gives_them():
    preprocessor = Run.load(checkpoint_folder("packaged")).preprocessor()
    tokenizer, images = preprocessor.processor.tokenizer, [np.zeros((64, 64, 3), np.uint8)] * 2
    arrays = preprocessor.answering("the bird 2 chases the snail", images, "the second chases the first")
    learned = [tokenizer.decode(token) for token in arrays["tokens"][arrays["loss_mask"]]]
    assert learned == ["2", "the", "second", "chases", "the", "first", tokenizer.eos_token]


def test_boxes_contain_the_subjects_and_little_else():
    """What a subject changes in the picture, above its shadow, spans its box."""
    critters = Critters("train", frames=5)
    for index in range(10):
        scene, tracks = critters.scene(index), critters.tracks(index)
        background = through_lens(scene.background.render(64, 64)).astype(int)
        for number, actor in enumerate(scene.actors):
            alone = replace(scene, actors=(actor,), thing=None).render(5, 64, 64)
            for t, frame, box in zip(np.linspace(0, 1, 5), alone, tracks.boxes[:, number], strict=True):
                changed = (np.abs(frame - background) > 30).any(axis=-1)
                ground = int((actor.track(t).y - 0.3 * actor.height) * 64)  # shadows lie below
                rows, columns = np.nonzero(changed[:ground])
                left, top, right, bottom = box
                assert left - 1 <= columns.min() <= columns.max() <= right
                assert top - 1 <= rows.min() <= top + 4
                assert bottom - top < 2.2 * actor.height * 64


def test_boxes_from_tracks_hold_most_of_the_subjects():
    critters = Critters("train", frames=5)
    inside, area = [], []
    for index in range(20):
        for t, boxes in zip(np.linspace(0, 1, 5), critters.boxes(index), strict=True):
            share = np.clip(np.round(boxes * 64), 0, 64).astype(int)
            for (left, top, right, bottom), mask in zip(share, critters.scene(index).masks(t, 64, 64), strict=True):
                inside.append((mask[top:bottom, left:right].sum(), mask.sum()))
                area.append((right - left) * (bottom - top))
    seen, whole = np.sum(inside, axis=0)
    assert seen > 0.9 * whole
    assert whole > 0.3 * np.sum(area)


def test_subjects_are_mostly_visible():
    critters = Critters("train")
    visible = np.concatenate([critters.tracks(index).visible.mean(axis=0) for index in range(20)])
    assert visible.max() <= 1.0
    assert visible.mean() > 0.85
    assert (visible > 0.4).mean() > 0.97


@pytest.mark.parametrize("place", PLACES)
def test_backgrounds_fit_any_aspect(place: str):
    for height, width in ((64, 64), (40, 120)):
        picture = Background(place, 3).render(height, width)
        assert picture.shape == (height, width, 3)
        assert picture.std() > 5


def test_sprite_has_soft_edges_and_moves_by_fractions_of_a_pixel():
    identity = draw_identity(3)
    sprites = [draw(identity, Pose(), (30.0 + shift, 40.0), 28.0) for shift in (0.0, 0.25, 1.0)]
    alpha = sprites[0].rgba[..., 3]
    assert ((alpha > 0) & (alpha < 255)).sum() > 20
    assert (sprites[0].rgba[..., :3] <= alpha[..., None]).all()
    centers = [
        (s.rgba[..., 3].astype(float).sum(axis=0) @ np.arange(s.left, s.left + s.rgba.shape[1])) / s.rgba[..., 3].sum()
        for s in sprites
    ]
    assert centers[1] - centers[0] == pytest.approx(0.25, abs=0.08)
    assert centers[2] - centers[0] == pytest.approx(1.0, abs=0.02)


def test_colors_survive_drawing():
    """The most frequent colour of a plain critter is the one it is named after."""
    for species in ("bird", "fish", "elephant"):
        for seed in range(200):
            identity = draw_identity(seed, "train", species)
            if identity.pattern != "plain":
                continue
            sprite = draw(identity, Pose(), (40.0, 80.0), 60.0)
            pixels = sprite.rgba[sprite.rgba[..., 3] == 255][:, :3].astype(int)
            names = list(COLORS)
            distances = ((pixels[:, None] - np.array([COLORS[name] for name in names])) ** 2).sum(axis=-1)
            near = distances.argmin(axis=1)[distances.min(axis=1) < 900]
            assert names[np.bincount(near).argmax()] == identity.color


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split is 'dev'; accepted: train, validation, test"),
        ({"max_subjects": 4}, "max_subjects is 4; accepted: 1, 2 or 3"),
        ({"shares": (0.0, 1.0, 1.0)}, r"shares is \(0.0, 1.0, 1.0\); accepted: three numbers"),
        ({"frames": 0}, "frames is 0; accepted: 1 or more"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        Critters(**arguments)


def write_cutout(path, color, alpha=255):
    picture = np.zeros((90, 120, 4), np.uint8)
    cv2.ellipse(picture, (60, 45), (50, 36), 0, 0, 360, (*color, alpha), -1, cv2.LINE_AA)
    cv2.imwrite(str(path), picture)


@pytest.fixture
def folder(tmp_path):
    names = ("red_panda", "dog", "teapot", "car", "lemon", "owl")
    for number, name in enumerate(names):
        write_cutout(tmp_path / f"{name}.png", (40 * number, 200 - 30 * number, 90))
    return tmp_path


def test_pictures_play_the_same_scenes(folder):
    nouns = set()
    for split in SPLITS:
        critters = Critters(split, cutouts=split_cutouts(find_cutouts(folder), split))
        seen = set()
        for index in range(8):
            assert critters.video(index).shape == (9, 64, 64, 3)
            conditions = critters.conditions(index, np.random.default_rng(index))
            assert all(r.noun in conditions.caption for r in conditions.references)
            assert all((r.mask > 127).mean() > 0.05 for r in conditions.references)
            seen |= {r.noun for r in conditions.references}
        assert not nouns & seen
        nouns |= seen
    assert nouns == {"red panda", "dog", "teapot", "car", "lemon", "owl"}


def test_cutout_keeps_its_colors_and_stands_in_its_box(folder):
    critters = Critters("validation", cutouts=split_cutouts(find_cutouts(folder), "validation"))
    scene, tracks = critters.scene(0), critters.tracks(0)
    picture = cv2.imread(str(scene.actors[0].subject.path))[45, 60, ::-1].astype(int)
    left, top, right, bottom = np.clip(tracks.boxes[4, 0], 0, 63).astype(int)
    frame = critters.video(0)[4].astype(int)
    assert np.abs(frame[(top + bottom) // 2, (left + right) // 2] - picture).max() < 60  # under the light of the place


def test_errors_of_cutouts_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.png file"):
        split_cutouts(find_cutouts(tmp_path), "train")
    with pytest.raises(InputError, match="is not a folder"):
        find_cutouts(tmp_path / "nowhere")
    write_cutout(tmp_path / "dog.png", (1, 2, 3))
    with pytest.raises(InputError, match=r"holds 1 subject\(s\); at least 3 are needed"):
        split_cutouts(find_cutouts(tmp_path), "train")
    cv2.imwrite(str(tmp_path / "cat.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"cat\.png has no alpha"):
        split_cutouts(find_cutouts(tmp_path), "train")
    cv2.imwrite(str(tmp_path / "cat.png"), np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(InputError, match=r"cat\.png is transparent everywhere"):
        split_cutouts(find_cutouts(tmp_path), "train")
    (tmp_path / "cat.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cat\.png: not an image that can be read"):
        split_cutouts(find_cutouts(tmp_path), "train")


def test_every_action_is_told_and_played():
    rng = np.random.default_rng(0)
    for count, actions in ACTIONS.items():
        for action in actions:
            scene = compose([draw_identity(seed) for seed in range(count)], action, "meadow", rng)
            assert scene.render(2, 32, 32).shape == (2, 32, 32, 3)
            assert action in grammar.SENTENCES
    assert sum(len(actions) for actions in ACTIONS.values()) == len(grammar.SENTENCES)
