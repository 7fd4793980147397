"""`python -m worker.train`: its arguments, and all stages in a few seconds on one walk."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from boxes import orbit

from worker.backbones.mini import create
from worker.codec import Codec, CodecConfig
from worker.depth.head import DepthConfig, DepthHead
from worker.geometry import Cameras
from worker.scenes.scene import HELD_OUT_SEED
from worker.train import denoiser, motion, mover
from worker.train.__main__ import CHOICES, main, parse
from worker.train.rollout import MAX_LEAD
from worker.train.stages import GPU_RECIPE, MIN_FRAMES, RECIPE, STAGES
from worker.weights import SHIPPED, checksum, load_module, read_card, save_module

MINUTES = [f"{stage}=0.01" for stage in STAGES]


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch):
    def give(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])

    return give


def test_the_default_is_every_stage_of_the_recipe(arguments):
    arguments()
    args = parse()
    assert CHOICES == ("data", *STAGES) == ("data", *RECIPE)
    assert tuple(args.stages) == CHOICES
    assert args.minutes == {name: cfg.minutes for name, cfg in RECIPE.items()}
    assert args.weights == SHIPPED and args.scenes < HELD_OUT_SEED


def test_a_time_box_can_be_changed(arguments):
    arguments("depth", "--minutes", "depth=0.5")
    args = parse()
    assert args.stages == ["depth"] and args.minutes["depth"] == 0.5
    assert args.minutes["codec"] == RECIPE["codec"].minutes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler"], "unknown stage 'sampler': choose from data, codec, depth, refiner"),
        (["--minutes", "codek=3"], "--minutes 'codek=3': expected one of codec, depth, refiner"),
        (["--minutes", "codec"], "--minutes 'codec': MINUTES must be a number above 0"),
        (["--device", "cuda"], "--device cuda: this torch sees no GPU; leave the option out"),
        (["--frames", "8"], "--frames 8: polish needs at least 9 of each"),
        (["data", "mover", "--frames", "2"], "--frames 2: mover needs at least 3"),
        (["data", "--frames", "0"], "--frames 0: data needs at least 1"),
        (["--minutes", "codec=0"], "--minutes 'codec=0': MINUTES must be a number above 0"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(arguments, capsys, words, message):
    arguments(*words)
    with pytest.raises(SystemExit):
        parse()
    assert message in " ".join(capsys.readouterr().err.split())


def drawn(stage: str, num_frames: int, seed: int) -> None:
    """One sample's frames as a stage chooses them, of a walk of so many."""
    generator = torch.Generator().manual_seed(seed)
    walks = SimpleNamespace(latents=torch.zeros(1, num_frames, 1, 1, 1))
    if stage in ("mover", "decoder"):
        part = mover.plan(walks, generator)
        assert part.context and len(part.targets) == mover.NUM_TARGETS
    elif stage == "motion":
        views = orbit(num_frames, 16, 24)
        depth = torch.ones(1, num_frames, 4, 6)
        pictures = torch.zeros(1, num_frames, 3, 8, 12, dtype=torch.uint8)
        cameras = Cameras(views.intrinsics[None], views.world_from_camera[None], 16, 24)
        motion.window(
            motion.Scenes(pictures, depth, depth[..., ::2, ::2] > 2, cameras, None), generator
        )
    else:
        longest = {"denoiser": denoiser.CHUNK, "polish": max(2 * denoiser.CHUNK, 1 + MAX_LEAD)}
        denoiser.plan(walks, longest[stage], generator)


@pytest.mark.parametrize("stage", ["motion", "mover", "decoder", "denoiser", "polish"])
def test_walks_may_be_as_short_as_is_said_and_no_shorter(stage):
    for seed in range(50):
        drawn(stage, MIN_FRAMES[stage], seed)
    with pytest.raises((RuntimeError, AssertionError)):
        for seed in range(50):
            drawn(stage, MIN_FRAMES[stage] - 1, seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set, the logs and the weights of all stages."""
    folder = tmp_path_factory.mktemp("train")
    run(folder, *CHOICES)
    return folder


def run(folder: Path, *stages: str, options: str = "") -> None:
    size = "--scenes 1 --further 1 --lively 2 --height 64 --width 96".split()
    places = ["--folder", str(folder), "--weights", str(folder / "weights")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["train", *stages, *size, *places, "--minutes", *MINUTES, *options.split()]
        )
        main()


def test_all_stages_leave_weights_that_load(trained):
    backbone = create("cpu", trained / "weights")
    assert backbone.channels == 16 and backbone.weights.startswith("mini@")


def test_the_cards_say_how_the_weights_were_made(trained):
    files = {"codec": "decoder", "depth": "depth", "refiner": "refiner", "motion": "motion"}
    files["denoiser"] = "polish"
    for name, stage in files.items():
        card = read_card(trained / "weights" / f"{name}.safetensors")
        assert card["stage"] == stage and card["steps"] >= 1 and card["seed"] == 0
        assert card["recipe"]["minutes"] == 0.01
        assert card["data"]["num_scenes"] == 1 and card["data"]["first_seed"] == 1
        assert card["recipe"]["inputs"]["walks.num_scenes"] == 1
        assert ("further" in card["data"]) == (name in ("depth", "motion"))
        assert {"commit", "minutes", "device", "torch", "date"} <= card.keys()


def test_every_stage_keeps_a_checkpoint_and_the_set_is_rendered(trained):
    assert all((trained / name / "checkpoint.pt").exists() for name in RECIPE)
    for name, count in (("walks", 1), ("further", 1), ("lively", 2)):
        assert json.loads((trained / name / "progress.json").read_text()) == {"scenes": count}


def test_the_recipe_for_a_gpu_has_the_same_stages_and_takes_25_minutes():
    assert GPU_RECIPE.keys() == RECIPE.keys()
    assert sum(cfg.minutes for cfg in GPU_RECIPE.values()) == 25


def test_a_finished_recipe_run_again_gives_the_same_weights(trained):
    path = trained / "weights" / "codec.safetensors"
    before, card = checksum(path), read_card(path)
    run(trained, *CHOICES)  # the mover meets a decoder that was trained after it
    assert checksum(path) == before and read_card(path)["steps"] == card["steps"]
    assert read_card(path)["earlier_stages"] == card["earlier_stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_does_not_go_on_with_another_seed(trained, stage):
    with pytest.raises(ValueError, match=f"{stage}/checkpoint.pt can't go on, as seed was 0 and"):
        run(trained, stage, options="--seed 1")


def test_views_for_the_depth_head_are_made_again_of_other_walks(trained, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(trained, folder)
    (before,) = folder.glob("depth_views_*.safetensors")
    with pytest.raises(ValueError, match=r"further\.num_scenes was 1 and is not given"):
        run(folder, "depth", options="--further 0")
    (without,) = set(folder.glob("depth_views_*.safetensors")) - {before}
    assert without.stat().st_size < before.stat().st_size


def test_stages_do_not_go_on_with_other_weights_of_earlier_ones(trained, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(trained, folder)
    retrain(folder, "depth")
    for stage in ("motion", "mover", "decoder", "denoiser", "polish"):
        with pytest.raises(ValueError, match=rf"{stage}/checkpoint.pt can't go on, as depth was"):
            run(folder, stage)
    retrain(folder, "codec")
    with pytest.raises(ValueError, match=r"depth/checkpoint.pt can't go on, as encoder was"):
        run(folder, "depth")


def retrain(folder: Path, name: str) -> None:
    """Weights as if of another run."""
    kind = {"codec": (Codec, CodecConfig), "depth": (DepthHead, DepthConfig)}[name]
    path = folder / "weights" / f"{name}.safetensors"
    module, sha256 = load_module(path, *kind)
    card = {key: value for key, value in read_card(path).items() if value != sha256}
    save_module(tiny.randomise(module), path, card)


def test_the_codec_s_card_tells_all_of_its_stages(trained):
    earlier = read_card(trained / "weights" / "codec.safetensors")["earlier_stages"]
    assert [one["stage"] for one in earlier] == ["codec", "mover"]
    for one in earlier:
        assert one["steps"] >= 1
        assert one["recipe"]["learning_rate"] == RECIPE[one["stage"]].learning_rate
