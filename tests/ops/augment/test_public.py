"""The public transforms: what they refuse and how they say it, replay, shapes, and how the ops behave in torch."""

import copy
import io
from dataclasses import replace

import pytest
import torch

from simclr_fast import SimCLRAugment, SimCLREval
from simclr_fast.ops.augment import AugmentParams, ImageBatch
from tests.ops.augment.compare import move, noise
from tests.streams import captured

NAN = float("nan")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"size=0 must be an integer >= 1"),
        ({"size": (4, 5, 6)}, r"size=\(4, 5, 6\) must be an integer >= 1, or \(height, width\)"),
        ({"size": 32.0}, r"size=32.0 must be an integer"),
        ({"scale": (0.5, 0.1)}, r"scale=\(0.5, 0.1\) must be \(low, high\) with 0 < low <= high <= 1"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\) must be"),
        ({"scale": (0.1, 1.5)}, r"scale=\(0.1, 1.5\) must be"),
        ({"scale": (NAN, 1.0)}, r"scale=\(nan, 1.0\) must be"),
        ({"ratio": (2.0, 0.5)}, r"ratio=\(2.0, 0.5\) must be \(low, high\) with 0 < low <= high"),
        ({"hflip": 1.5}, r"hflip=1.5 must be a probability in \[0, 1\]"),
        ({"gray_p": NAN}, r"gray_p=nan must be a probability"),
        ({"strength": -1.0}, r"strength=-1.0 must be finite and >= 0"),
        ({"strength": NAN}, r"strength=nan must be finite"),
        ({"strength": 3.0}, r"hue jitter 0.6\S* \(jitter\[3\] \* strength\) must be at most 0.5"),
        ({"jitter": (0.8, 0.8, 0.8, 0.51)}, r"hue jitter 0.51 \(jitter\[3\] \* strength\) must be at most 0.5"),
        ({"jitter": (0.8, -0.1, 0.8, 0.1)}, r"jitter=.* must be four finite numbers >= 0"),
        ({"strength": float("inf")}, r"strength=inf must be finite"),
        ({"hflip": -0.1}, r"hflip=-0.1 must be a probability"),
        ({"solarize_threshold": -0.1}, r"solarize_threshold=-0.1 must be in"),
        ({"ratio": (0.0, 2.0)}, r"ratio=\(0.0, 2.0\) must be"),
        ({"blur_sigma": (2.0, 0.1)}, r"blur_sigma=\(2.0, 0.1\) must be"),
        ({"blur_kernel": -1}, r"blur_kernel=-1 must be an odd integer >= 1"),
        ({"jitter": (0.8, 0.8, 0.8)}, r"jitter=\(0.8, 0.8, 0.8\) must be four finite numbers"),
        ({"jitter": (0.8, 0.8, NAN, 0.1)}, r"jitter=.* must be four finite numbers"),
        ({"blur_kernel": 4}, r"blur_kernel=4 must be an odd integer >= 1"),
        ({"blur_kernel": 65}, r"blur_kernel=65 reaches beyond the reflection of a \(32, 32\) output; at most 63 taps"),
        ({"blur_sigma": (0.0, 2.0)}, r"blur_sigma=\(0.0, 2.0\) must be \(low, high\) with 0 < low <= high"),
        ({"solarize_threshold": 1.5}, r"solarize_threshold=1.5 must be in \[0, 1\]"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must be one finite number or three"),
        ({"std": (0.5, 0.0, 0.5)}, r"std=\(0.5, 0.0, 0.5\) must be > 0"),
        ({"mean": NAN}, r"mean=nan must be one finite number or three"),
        ({"views": 0}, r"views=0 must be an integer in 1..8"),
        ({"views": 9}, r"views=9 must be an integer in 1..8"),
        ({"scale": 0.2}, r"scale=0.2 must be \(low, high\) with 0 < low"),
        ({"ratio": "wide"}, r"ratio='wide' must be \(low, high\)"),
        ({"blur_sigma": 1.0}, r"blur_sigma=1.0 must be \(low, high\)"),
        ({"jitter": 0.4}, r"jitter=0.4 must be four finite numbers >= 0: brightness"),
        ({"jitter_p": None}, r"jitter_p=None must be a probability"),
        ({"blur_p": [0.5, 0.5]}, r"blur_p=\[0.5, 0.5\] must be a probability"),
        ({"solarize_threshold": None}, r"solarize_threshold=None must be in"),
        ({"strength": "strong"}, r"strength='strong' must be finite"),
        ({"std": "0.5"}, r"std='0.5' must be one finite number or three"),
        ({"dtype": torch.float64}, r"dtype=torch.float64 is not served; pass torch.float32"),
        ({"memory_format": torch.preserve_format}, r"memory_format=torch.preserve_format is not served"),
    ],
)
def test_settings_that_are_refused(settings: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SimCLRAugment(**{"size": 32} | settings)


def test_settings_at_their_bounds_are_taken() -> None:
    least = {"scale": (1e-3, 1e-3), "ratio": (2.0, 2.0), "hflip": 0, "strength": 0, "blur_sigma": (1e-3, 1e-3)}
    least |= {"blur_kernel": 1, "solarize_threshold": 0, "views": 1, "jitter_p": 1, "blur_p": 1}
    most = {"scale": (1.0, 1.0), "hflip": 1, "jitter": (0, 0, 0, 0.25), "strength": 2, "blur_kernel": 63}
    most |= {"solarize_threshold": 1, "views": 8, "blur_p": 1}
    images = noise(2, 3, 40, 50)
    small, large = SimCLRAugment(32, **least), SimCLRAugment(32, **most)
    assert small(images).isfinite().all()
    assert large(images).shape == (16, 3, 32, 32)
    # What changes nothing is not drawn.
    assert (small.recipe.jitter_p, small.recipe.blur_p, large.recipe.jitter_p, large.recipe.blur_p) == (0, 0, 0.8, 1)
    assert (large.recipe.hue_low, large.recipe.hue_span) == (-0.5, 1.0)
    assert SimCLREval(8, resize=8)(images).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(3, 8, 8), r"images has shape \(3, 8, 8\); pass \[B, C, H, W\]"),
        (noise(2, 8, 8, 3), r"images has 8 channels, 1 or 3 are served; .* permute channels-last arrays"),
        (noise(2, 4, 8, 8), r"images has 4 channels, 1 or 3 are served"),
        (noise(2, 3, 0, 8), r"images has shape \(2, 3, 0, 8\): height and width must be at least 1"),
        (noise(2, 3, 8, 8).double(), r"images has dtype torch.float64; pass uint8, or float16, bfloat16 or float32"),
        (noise(2, 3, 8, 8).int(), r"images has dtype torch.int32"),
        (noise(2, 3, 8, 8).numpy(), r"images is a ndarray; pass a tensor"),
        ([], r"images is an empty list"),
        ([noise(3, 8, 8), noise(1, 8, 8)], r"images\[1\] has 1 channels, images\[0\] has 3"),
        (
            [noise(3, 8, 8), noise(3, 8, 8).float()],
            r"images\[1\].dtype is torch.float32, images\[0\].dtype is torch.uint8",
        ),
        ([noise(3, 8, 8), noise(3, 0, 8)], r"images\[1\] has shape \(3, 0, 8\)"),
        ([noise(3, 8, 8), 7], r"images\[1\] is a int; pass a torch.Tensor"),
    ],
)
@pytest.mark.parametrize("transform", [SimCLRAugment(8), SimCLREval(8)], ids=["augment", "eval"])
def test_images_that_are_refused(transform, images, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        transform(images)


def test_other_arguments_that_are_refused() -> None:
    images, aug = noise(2, 3, 8, 8), SimCLRAugment(8)
    with pytest.raises(ValueError, match=r"mean has 3 values, the images have 1 channel\(s\); pass one, as mean=0.5"):
        aug(images[:, :1])
    with pytest.raises(TypeError, match=r"seed=1.5 must be an integer of 64 bits, or an int64 tensor of one element"):
        aug(images, seed=1.5)
    with pytest.raises(TypeError, match=r"seed is torch.int64 \(2,\) on cpu; pass an integer, or int64 \[1\] on cpu"):
        aug(images, seed=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"indices is torch.int64 \(3,\) on cpu; pass int64 \[2\] on cpu"):
        aug(images, indices=torch.arange(3))
    with pytest.raises(ValueError, match=r"indices is torch.float32 \(2,\)"):
        aug(images, indices=torch.zeros(2))
    with pytest.raises(
        RuntimeError, match=r"backend='triton' cannot serve SimCLRAugment on cpu: Triton kernels run on CUDA"
    ):
        SimCLRAugment(8, backend="triton")(images)
    with pytest.raises(ValueError, match=r"resize=7 must be an integer of at least 8"):
        SimCLREval(8, resize=7)
    with pytest.raises(ValueError, match=r"resize=7 must be an integer of at least 8"):
        SimCLREval((6, 8), resize=7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("top", 5, r"params.height\[1, 2\] = \d+ leaves the image"),
        ("left", -1, r"params.width\[1, 2\] = \d+ leaves the image"),
        ("top", -1, r"params.height\[1, 2\] = \d+ leaves the image"),
        ("left", 8, r"params.width\[1, 2\] = \d+ leaves the image"),
        ("height", 0, r"params.height\[1, 2\] = 0 leaves the image"),
        ("width", 2**31 - 1, r"params.width\[1, 2\] = \d+ leaves the image"),
        ("width", 0, r"params.width\[1, 2\] = 0 leaves the image"),
        ("order", 24, r"params.order\[1, 2\] = 24 must be in 0..23"),
        ("order", -1, r"params.order\[1, 2\] = -1 must be in 0..23"),
        *(
            (factor, bad, rf"params.{factor}\[1, 2\] = {bad} must be finite and >= 0")
            for factor in ("brightness", "contrast", "saturation")
            for bad in (-0.5, float("inf"))
        ),
        ("hue", -0.6, r"params.hue\[1, 2\] = -0.6\d* must be in"),
        ("sigma", float("inf"), r"params.sigma\[1, 2\] = inf must be finite and > 0"),
        ("solarize_threshold", 1.5, r"params.solarize_threshold\[1, 2\] = 1.5 must be at most 1"),
        ("shift_y", -1, r"params.shift_y\[1, 2\] = -1 leaves the resized image"),
        ("shift_x", -1, r"params.shift_x\[1, 2\] = -1 leaves the resized image"),
        ("shift_x", 3, r"params.shift_x\[1, 2\] = 3 leaves the resized image"),
        ("brightness", NAN, r"params.brightness\[1, 2\] = nan must be finite and >= 0"),
        ("contrast", -0.5, r"params.contrast\[1, 2\] = -0.5 must be finite and >= 0"),
        ("saturation", float("inf"), r"params.saturation\[1, 2\] = inf must be finite"),
        ("hue", 0.6, r"params.hue\[1, 2\] = 0.6\d* must be in \[-0.5, 0.5\]"),
        ("sigma", 0.0, r"params.sigma\[1, 2\] = 0.0 must be finite and > 0"),
        ("solarize_threshold", NAN, r"params.solarize_threshold\[1, 2\] = nan must be at most 1"),
        ("shift_y", 3, r"params.shift_y\[1, 2\] = 3 leaves the resized image"),
    ],
)
def test_parameters_that_are_refused(field: str, value: float, message: str) -> None:
    images, aug = noise(4, 3, 8, 8), SimCLRAugment(8, blur_p=1.0, blur_kernel=3)
    params = aug.sample(images, seed=1)
    bad = getattr(params, field).clone()
    bad[1, 2] = value
    with pytest.raises(ValueError, match=message):
        aug.apply(images, replace(params, **{field: bad}))


def test_parameters_at_their_bounds_are_taken() -> None:
    """Of images and an output that are not square, and of a resized image that is larger than the output."""
    aug, sizes = SimCLRAugment((6, 4), blur_p=1.0, blur_kernel=3), ((9, 20), (13, 5))
    params = aug.sample([noise(3, *size) for size in sizes], seed=1)
    whole = {"top": torch.zeros(2, 2), "height": torch.tensor([9, 13]), "width": torch.tensor([20, 5])}
    bounds = {"left": 0, "order": 23, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": -0.5}
    bounds |= {"solarize_threshold": 1.0, "resize_height": 8, "shift_y": 2, "resize_width": 12, "shift_x": 8}
    bounds = {name: torch.full_like(getattr(params, name), value) for name, value in bounds.items()}
    whole = {name: value.int().expand(2, 2) for name, value in whole.items()}
    params = replace(params, **bounds, **whole)
    params.check(*torch.tensor(sizes).T, 6, 4)
    for name in ("shift_y", "shift_x"):
        with pytest.raises(ValueError, match=f"params.{name}.* leaves the resized image"):
            replace(params, **{name: getattr(params, name) + 1}).check(*torch.tensor(sizes).T, 6, 4)
    for axis in ("y", "x"):  # one row, or column, of which the output wants several
        side = {f"resize_{'height' if axis == 'y' else 'width'}": 1, f"shift_{axis}": 0}
        narrow = {name: torch.full_like(params.top, value) for name, value in side.items()}
        with pytest.raises(ValueError, match=f"params.shift_{axis}.* leaves the resized image"):
            replace(params, **narrow).check(*torch.tensor(sizes).T, 6, 4)
    with pytest.raises(ValueError, match="params.hue"):
        replace(params, hue=params.hue - 0.01).check(*torch.tensor(sizes).T, 6, 4)
    no_blur = replace(params, blur=~params.blur, sigma=params.sigma * 0, hue=-params.hue)
    no_blur.check(*torch.tensor(sizes).T, 6, 4)


def test_parameters_of_another_batch_are_refused() -> None:
    images, aug = noise(4, 3, 8, 8), SimCLRAugment(8)
    params = aug.sample(images)
    with pytest.raises(ValueError, match=r"params are for 2 views of 4 images, this call has 2 views of 3"):
        aug.apply(images[:3], params)
    with pytest.raises(ValueError, match=r"params are for 2 views of 4 images, this call has 3 views of 4"):
        SimCLRAugment(8, views=3).apply(images, params)
    with pytest.raises(ValueError, match=r"params.height\[\d, \d\] = \d+ leaves the image"):
        aug.apply(noise(4, 3, 1, 1), params)
    with pytest.raises(ValueError, match=r"params are on meta, images on cpu; use params.to\(device\)"):
        aug.apply(images, params.to("meta"))
    with pytest.raises(TypeError, match=r"params is a Tensor; pass what SimCLRAugment.sample returned"):
        aug.apply(images, params.pack())
    with pytest.raises(ValueError, match=r"params.hue has shape \(2, 3\), params.top has \(2, 4\)"):
        aug.apply(images, replace(params, hue=params.hue[:, :3]))


def test_the_defaults_are_those_of_the_paper() -> None:
    aug = SimCLRAugment(32)
    named = {
        **{
            "scale": (0.08, 1.0),
            "ratio": (3 / 4, 4 / 3),
            "hflip": 0.5,
            "strength": 1.0,
            "jitter": (0.8, 0.8, 0.8, 0.2),
        },
        **{"jitter_p": 0.8, "gray_p": 0.2, "blur_p": 0.5, "blur_sigma": (0.1, 2.0), "blur_kernel": 3},
        **{"solarize_p": 0.0, "solarize_threshold": 0.5, "views": 2},
    }
    of_names = SimCLRAugment(32, **named)
    assert list(aug.recipe) == list(of_names.recipe)
    assert (aug.blur_kernel, aug.views, aug.dtype, aug.backend) == (3, 2, torch.float32, "auto")
    for transform in (aug, SimCLREval(32)):
        assert (transform.mean, transform.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert transform.memory_format == torch.channels_last
    assert SimCLREval((24, 32)).resize == 32
    for changed in named:  # and each of them counts
        other = {"jitter": (0.4, 0.4, 0.4, 0.1), "blur_kernel": 5, "views": 3}.get(changed)
        if other is None:
            value = named[changed]
            other = tuple(x / 2 for x in value) if isinstance(value, tuple) else 0.25
        one = SimCLRAugment(32, **named | {changed: other})
        assert (list(one.recipe), one.blur_kernel, one.views) != (list(aug.recipe), aug.blur_kernel, aug.views), changed


@pytest.mark.parametrize("views", range(1, 9))
def test_views_are_view_major(place, views: int) -> None:
    device, backend = place
    images = noise(3, 3, 20, 24).to(device)
    aug = SimCLRAugment(16, views=views, backend=backend)
    out = aug(images, seed=1)
    assert out.shape == (views * 3, 3, 16, 16)
    assert out.is_contiguous(memory_format=torch.channels_last)
    # View v of sample k is row v * B + k, whoever else is in the batch.
    single = SimCLRAugment(16, views=1, backend=backend)
    params = aug.sample(images, seed=1)
    for view in range(views):
        one = AugmentParams(**{name: value[view : view + 1] for name, value in vars(params).items()})
        assert torch.equal(single.apply(images, one), out[view * 3 : view * 3 + 3])


def test_params_replay_after_saving(place) -> None:
    device, backend = place
    images, aug = noise(3, 3, 20, 24).to(device), SimCLRAugment(16, backend=backend)
    params = aug.sample(images, torch.Generator(device).manual_seed(3))
    assert params.top.device == images.device
    file = io.BytesIO()
    torch.save(vars(params), file)
    file.seek(0)
    replayed = AugmentParams(**torch.load(file, weights_only=True))
    assert torch.equal(replayed.pack(), params.pack())
    assert torch.equal(AugmentParams.unpack(params.pack()).pack(), params.pack())
    expected = aug(images, torch.Generator(device).manual_seed(3))
    assert torch.equal(aug.apply(images, replayed), expected)


def test_same_draws_on_every_backend(place) -> None:
    device, backend = place
    recipe = {"solarize_p": 0.3, "scale": (0.02, 1.0), "ratio": (0.1, 12.0), "views": 3}
    for images in (noise(500, 1, 31, 57), noise(100, 3, 1, 1), [noise(3, 5 + k, 60 - k) for k in range(40)]):
        indices = torch.arange(len(images)) * 7**18
        truth = SimCLRAugment(16, backend="reference", **recipe).sample(images, seed=-77, indices=indices).pack()
        aug = SimCLRAugment(16, backend=backend, **recipe)
        drawn = aug.sample(move(images, device), seed=-77, indices=indices.to(device)).pack()
        assert torch.equal(drawn.cpu(), truth)


def test_a_whole_batch_is_the_sum_of_its_parts(place) -> None:
    device, backend = place
    images, indices = noise(5, 3, 20, 24).to(device), torch.arange(100, 105, device=device)
    aug = SimCLRAugment(16, views=1, backend=backend)
    whole = aug(images, seed=9, indices=indices)
    parts = [aug(part, seed=9, indices=index) for part, index in zip(images.split([2, 3]), indices.split([2, 3]))]
    assert torch.equal(whole, torch.cat(parts))


def test_the_number_of_threads_does_not_matter() -> None:
    images, threads = noise(17, 3, 40, 50), torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(SimCLRAugment(32)(images, seed=1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_empty_batch(place) -> None:
    device, backend = place
    images = noise(0, 3, 20, 24).to(device)
    assert SimCLRAugment(16, backend=backend)(images).shape == (0, 3, 16, 16)
    assert SimCLREval(16, backend=backend)(images).shape == (0, 3, 16, 16)


def test_images_that_require_grad_are_taken_as_they_are(place) -> None:
    device, backend = place
    images = (noise(2, 3, 20, 24).float() / 255).to(device)
    out = SimCLRAugment(16, backend=backend)(images.clone().requires_grad_(), seed=1)
    assert not out.requires_grad
    assert torch.equal(out, SimCLRAugment(16, backend=backend)(images, seed=1))


def test_module_copies_and_prints() -> None:
    aug = SimCLRAugment(32, views=3)
    assert "size=(32, 32)" in repr(aug)
    images = noise(2, 3, 40, 40)
    assert torch.equal(copy.deepcopy(aug)(images, seed=1), aug(images, seed=1))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_opcheck(backend: str) -> None:
    suffix = "" if backend == "cpp" else "_reference"
    sample_op = getattr(torch.ops.simclr_fast, f"augment_sample{suffix}").default
    augment_op = getattr(torch.ops.simclr_fast, f"augment{suffix}").default
    recipe = list(SimCLRAugment(16).recipe)
    for batch in (ImageBatch.of(noise(2, 3, 20, 24)), ImageBatch.of([noise(3, 20, 24), noise(3, 9, 11)])):
        seed, indices = torch.tensor([5]), torch.tensor([3, 8])
        args = (seed, indices, batch.table, *batch.size, 2, 2, recipe)
        torch.library.opcheck(sample_op, args)
        params = sample_op(*args)
        for channels_last in (True, False):
            settings = ([0.5] * 3, [0.2] * 3, 3, torch.float16, channels_last)
            torch.library.opcheck(augment_op, (batch.data, batch.table, params, 3, 16, 18, *settings))


def test_torch_compile() -> None:
    """One graph, the same views; new batch sizes and seeds do not break it."""
    aug = SimCLRAugment(16, views=2)
    images = noise(4, 3, 20, 24)
    compiled = torch.compile(lambda images, seed: aug(images, seed=seed) * 2, fullgraph=True, backend="aot_eager")
    for batch in (images, images[:3], noise(6, 3, 30, 28)):
        seed = torch.tensor([len(batch)])
        assert torch.equal(compiled(batch, seed), aug(batch, seed=seed) * 2)
    drawing = torch.compile(aug, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first = drawing(images)
    torch.manual_seed(1)
    assert torch.equal(drawing(images), first)
    assert not torch.equal(drawing(images), first)
    eval_ = SimCLREval(16, resize=18)
    assert torch.equal(torch.compile(eval_, fullgraph=True, backend="aot_eager")(images), eval_(images))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_cuda_graph_draws_anew_at_each_replay(backend: str) -> None:
    images = noise(8, 3, 40, 40).cuda()
    aug = SimCLRAugment(32, backend=backend)
    graph, out = captured(lambda: aug(images))
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)
