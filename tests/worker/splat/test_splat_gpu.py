"""The fused kernels agree with the torch twin bit for bit: on a GPU where there is one, else in
Triton's interpreter, in small sizes.
"""

import os
import subprocess
import sys
from dataclasses import MISSING, fields, replace

import pytest
import torch
from boxes import orbit, room_depth
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined
pytest.importorskip("triton")

from bench.memory_gpu import looking as bench_views
from bench.memory_gpu import main, scene
from worker.geometry import Cameras, stack_cameras
from worker.memory import read_many
from worker.memory.latent import LatentMemory, LatentMemoryConfig
from worker.memory.points import Points
from worker.memory.sight import finer_than, see, seen_by_torch
from worker.placed import NUM_PARTS
from worker.splat import gpu as splat_gpu
from worker.splat.cpu import Surface

# The interpreter divides by the depth of a point in the camera's plane aloud, as numpy does.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GRID, CHANNELS = (6, 9), 5
COLUMNS = [field.name for field in fields(Surface) if field.default is MISSING]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def filled(num_frames: int, seed: int = 0, **options: object) -> LatentMemory:
    """A room seen by an orbit, fused, with noise in depth, some points removed."""
    memory = LatentMemory(CHANNELS, GRID, DEVICE, LatentMemoryConfig(**options))
    views = orbit(num_frames, 48, 72)
    generator = torch.Generator().manual_seed(seed)
    for i in range(num_frames):
        depth = room_depth(views[i : i + 1])
        depth = depth * (1 + 0.2 * torch.rand(depth.shape, generator=generator))
        depth[torch.rand(depth.shape, generator=generator) < 0.1] = 0
        tokens = torch.randn(1, CHANNELS, *GRID, generator=generator)
        trust = 0.1 + torch.rand(1, *GRID, generator=generator)
        memory.write(tokens, depth, views[i : i + 1], [i], confidence=trust, observed=i % 2 == 0)
    return memory


def remembered(num_frames: int, seed: int = 0, **options: object) -> Points:
    return filled(num_frames, seed, **options)._points


def looking(num: int) -> Cameras:
    return orbit(num + 2, 48, 72)[1 : num + 1].resized(*GRID).to(DEVICE)


def assert_same(found: Surface, expected: Surface) -> None:
    for name in COLUMNS:
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype and torch.equal(left, right), name
    assert (found.part is None) == (expected.part is None)
    assert found.part is None or torch.equal(found.part, expected.part)
    assert (found.second is None) == (expected.second is None)
    if found.second is not None:
        assert_same(found.second, expected.second)


def read(points: Points, cameras: Cameras, **options: object) -> Surface:
    return splat_gpu.read(splat_gpu.batch_of([points]), cameras.reshape(1, -1), **options)


@pytest.mark.parametrize("token_format", ["bfloat16", "int8"])
def test_the_torch_twin_agrees_bit_for_bit(token_format):
    points, cameras = remembered(4, token_format=token_format), looking(3)
    found = read(points, cameras)
    assert_same(found, seen_by_torch(points, cameras, "nearest"))
    assert (found.coverage == 1).any() and (found.coverage == 0).any()
    assert len(found.source.unique()) > 2


def two_surfaces(token_format: str) -> Points:
    cfg = LatentMemoryConfig(token_format=token_format)
    memory, view = LatentMemory(CHANNELS, GRID, DEVICE, cfg), orbit(5, 48, 72)[1:2]
    far = room_depth(view)
    near = 0.4 * far
    near[..., 36:] = 0  # something stood before the left half, and is doubted
    for number, depth in enumerate((near, far)):
        tokens = torch.randn(1, CHANNELS, *GRID)
        memory.write(tokens, depth, view, [number], observed=True)
    return memory._points


@pytest.mark.parametrize("token_format", ["bfloat16", "int8"])
def test_the_next_surface_agrees_too(token_format):
    points, cameras = two_surfaces(token_format), looking(3)
    found = read(points, cameras, mode="layers")
    assert_same(found, seen_by_torch(points, cameras, "layers"))
    assert 0 < int(found.second.coverage.sum()) < found.second.coverage.numel()
    assert_same(replace(found, second=None), read(points, cameras))


@pytest.mark.parametrize("mode", ["nearest", "layers", "witnesses"])
@pytest.mark.parametrize("grid", [(12, 18), (3, 4)])
def test_views_finer_and_coarser_than_the_grid(mode, grid):
    points, views = remembered(4), orbit(5, 48, 72)[1:4].resized(*grid).to(DEVICE)
    assert_same(read(points, views, mode=mode), seen_by_torch(points, views, mode))


@pytest.mark.parametrize("token_format", ["bfloat16", "int8"])
def test_a_look_at_the_parts_of_cells(token_format):
    views = orbit(5, 48, 72)[1:4].resized(*finer_than(GRID)).to(DEVICE)
    for points in (remembered(4, token_format=token_format), two_surfaces(token_format)):
        found = read(points, views, mode="witnesses", in_parts=True)
        assert_same(found, seen_by_torch(points, views, "witnesses", in_parts=True))
        assert len(found.part.unique()) == NUM_PARTS
        assert not torch.equal(found.depth, read(points, views).depth)
    assert found.second.coverage.any()


def test_cells_whose_parts_nobody_knows_are_looked_at_whole():
    points, views = remembered(4, has_relief=False), looking(3)
    assert_same(read(points, views, in_parts=True), read(points, views))


@pytest.mark.parametrize("mode", ["nearest", "layers", "witnesses"])
def test_surfaces_without_tokens(mode):
    points, cameras = remembered(2), looking(1)
    assert_same(
        read(points, cameras, mode=mode, with_tokens=False),
        seen_by_torch(points, cameras, mode, with_tokens=False),
    )


def test_close_up_and_far_away():
    """Patches that cover many cells, many patches in a cell, and blocks that nobody sees."""
    points = remembered(2)
    near = looking(1)
    eye, ahead = near.world_from_camera[0, :3, 3], near.world_from_camera[0, :3, 2]
    for step_m in (0.9, -3.0, 9.0):
        moved = near[:]
        moved.world_from_camera[0, :3, 3] = eye + step_m * ahead
        assert_same(read(points, moved), seen_by_torch(points, moved, "nearest"))


def test_sessions_of_different_sizes_are_read_together():
    sessions = [remembered(1), remembered(3, seed=1), remembered(2, seed=2)]
    views = [looking(2), looking(3)[1:], looking(2)]
    found = splat_gpu.read(splat_gpu.batch_of(sessions), stack_cameras(views))
    for i, (points, cameras) in enumerate(zip(sessions, views, strict=True)):
        part = Surface(*(getattr(found, name)[2 * i : 2 * i + 2] for name in COLUMNS))
        assert_same(part, seen_by_torch(points, cameras, "nearest"))


def test_sessions_of_different_formats_are_refused():
    with pytest.raises(ValueError, match="formats can't be read together"):
        splat_gpu.batch_of([remembered(1), remembered(1, token_format="int8")])


def test_an_empty_session_shows_nothing():
    empty = LatentMemory(CHANNELS, GRID, DEVICE)._points
    found = read(empty, looking(2))
    assert (found.winner == -1).all() and not found.coverage.any() and not found.tokens.any()


class NoWaiting(TorchDispatchMode):
    """Refuses every operation whose answer the host, or the size of a tensor, has to wait for."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "item",
        "unique",
        "is_nonzero",
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        masks = [one for one in indices if one is not None and one.dtype == torch.bool]
        if name in self.WAITS or name.startswith("_unique") or masks:
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


def test_a_read_never_waits_for_the_device():
    batch, cameras = splat_gpu.batch_of([remembered(2)]), looking(2).reshape(1, 2)
    expected = splat_gpu.read(batch, cameras)
    with NoWaiting():
        found = splat_gpu.read(batch, cameras)
    assert_same(found, expected)
    with pytest.raises(AssertionError, match="nonzero waits"), NoWaiting():
        found.coverage.nonzero()


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import triton.language as tl
from worker.splat import fused as splat_triton

TYPES = {"table": "*i64", "view_poses": "*fp64", "view_lenses": "*fp64", "front": "*i32"}
TYPES["hidden"] = "*i32"
TYPES |= dict.fromkeys(("rank", "first", "taken", "indices"), "*i64")
TYPES |= dict.fromkeys(("numbers", "shown"), "*fp32")
TYPES |= dict.fromkeys(("num_views", "height", "width", "grid_width"), "i32")
shape = {"CHANNELS": 48, "PADDED": 64, "TILE": 32, "INT8": True}
scan = {"PASS": 2, "SECOND": True, "WITNESS": True}
for kernel, own in ((splat_triton.scan, scan), (splat_triton.gather, shape)):
    names = kernel.arg_names
    given = {"OFFSET": 0.5, "CELL": tl.int16, "PARTS": 4, **own}
    source = ASTSource(
        kernel,
        {name: TYPES.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in given.items()},
    )
    built = compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    print(built.asm["ptx"])
"""


def test_the_kernels_compile_for_a_gpu_and_round_every_product():
    pytest.importorskip("triton.backends.nvidia")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    answer = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    instructions = answer.stdout
    assert "fma." not in instructions and "div.full" not in instructions
    assert "div.rn.f32" in instructions and "div.rn.f64" in instructions


def test_the_benchmark_s_scene_is_one_that_cameras_see_whole():
    points = scene(200, DEVICE, grid=GRID)
    found = seen_by_torch(points, bench_views(2, GRID).to(DEVICE), "nearest")
    assert len(points) == 200 and len(points.frames) == 4
    assert (found.coverage[:, 1:-1, 1:-1] > 0).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_the_benchmark_asks_for_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memory_gpu"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        main()


@pytest.mark.gpu
@needs_gpu
def test_a_large_scene_agrees_on_the_gpu_with_the_twin_and_with_the_cpu():
    points, cameras = scene(300_000, "cuda"), bench_views(9)
    found = read(points, cameras.to("cuda"))
    assert_same(found, seen_by_torch(points, cameras.to("cuda"), "nearest"))
    on_cpu = see(scene(300_000, "cpu"), cameras, "nearest")
    assert_same(Surface(*(getattr(found, name).cpu() for name in COLUMNS)), on_cpu)
    assert_same(found, read(points, cameras.to("cuda")))


@pytest.mark.gpu
@needs_gpu
def test_a_read_can_be_captured_in_a_graph():
    batch = splat_gpu.batch_of([scene(20_000, "cuda")])
    views = bench_views(4).to("cuda").reshape(1, 4)
    expected = splat_gpu.read(batch, views)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = splat_gpu.read(batch, views)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(found, expected)


@pytest.mark.gpu
@needs_gpu
def test_memories_are_read_together_as_they_are_alone():
    memories = [filled(2), filled(3, seed=1)]
    views = [looking(2), looking(3)[1:]]
    together = read_many(memories, views, "nearest")
    for memory, cameras, readout in zip(memories, views, together, strict=True):
        alone = memory.read(cameras, "nearest")
        for name, value in vars(alone).items():
            assert torch.equal(getattr(readout, name), value), name
