"""A network of timm in place of patch embedding and trunk: its final feature map, position by position, is the tokens.

B samples, C channels, S image size, (H, W) positions of the feature map, D width.
"""

import copy
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import initialization

# what a network may need to know of its images, most first: those that are free in size take none of it
SIZES = (("img_size", "dynamic_img_size"), ("img_size",), ())


def make(name: str, *, channels: int, image_size: int, small_stem: bool) -> nn.Module:
    """The network, randomly initialised by timm, without its classifier.

    ValueError: there is none of that name, size, or with such a stem.
    """
    import timm  # seconds that those who use none need not wait

    if not timm.is_model(str(name)):
        raise ValueError(
            f"model.frontends.image.backbone is {name!r}, which timm does not have; "
            f"try timm.list_models('*{str(name)[:6]}*')"
        )
    # also where transformers builds without memory: what is computed in constructors must exist
    with torch.device("cpu"):
        model = _create(name, channels, image_size)
        if small_stem:
            _shrink_stem(model, name, channels)
    return model


def _create(name: str, channels: int, image_size: int) -> nn.Module:
    """timm's network of that name, told as much of its images' size as it takes."""
    import timm

    known = {"img_size": image_size, "dynamic_img_size": True}
    for number, names in enumerate(SIZES):
        settings = {key: known[key] for key in names}
        try:
            return timm.create_model(
                name, pretrained=False, in_chans=channels, num_classes=0, global_pool="", **settings
            )
        except TypeError:
            if number == len(SIZES) - 1:
                raise
    raise AssertionError("SIZES is empty")


def _shrink_stem(model: nn.Module, name: str, channels: int) -> None:
    """For images of about 32 pixels: a first convolution of 3 x 3 without stride, and no pooling after it.

    As in SimCLR (arXiv 2002.05709, B.9).
    """
    from timm.models.resnet import ResNet

    if not isinstance(model, ResNet) or not isinstance(model.conv1, nn.Conv2d):
        raise ValueError(
            "model.frontends.image.small_stem is of ResNets whose stem is one convolution, such as resnet18; "
            f"the backbone is {name}"
        )
    model.conv1 = nn.Conv2d(channels, model.conv1.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    model.init_weights()


def feature_map(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """(B, C, S, S) -> (B, H, W, D), after the final norm of a ViT.

    ValueError: the network cannot read this size, or gives no feature map.
    """
    if pixel_values.device.type == "cuda":  # whose convolutions are faster where channels lie last in memory
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
    try:
        x = model.forward_features(pixel_values)
    except AssertionError as error:
        raise ValueError(
            f"pixel_values of shape {tuple(pixel_values.shape)}: the backbone cannot read them: {error}"
        ) from None
    if isinstance(x, Tensor) and x.ndim == 4:
        return x if getattr(model, "output_fmt", "NCHW") == "NHWC" else x.permute(0, 2, 3, 1)
    if isinstance(x, Tensor) and x.ndim == 3:
        x = x[:, getattr(model, "num_prefix_tokens", 0) :]
        side = isqrt(x.shape[1])
        if side * side == x.shape[1]:
            return x.unflatten(1, (side, side))
    raise ValueError(
        f"the backbone {type(model).__name__} gives no feature map of squares, whose positions would be the tokens"
    )


def survey(model: nn.Module, channels: int, image_size: int) -> tuple[int, int, int]:
    """H, W and D of the feature map of an image.

    What it does not depend on (norms of classifiers) will not be trained.
    """
    # of a copy without memory: an image of any size costs nothing
    shadow = copy.deepcopy(model).to("meta").eval()
    parameters = list(shadow.parameters())
    with torch.enable_grad(), torch.device("meta"):
        x = feature_map(shadow, torch.zeros(1, channels, image_size, image_size, dtype=parameters[0].dtype))
        gradients = torch.autograd.grad(x.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return x.shape[1], x.shape[2], x.shape[3]


def reset(model: nn.Module, fresh: nn.Module) -> None:
    """Every tensor becomes that of `fresh`, non-persistent buffers too; what transformers has loaded stays."""
    tensors = dict([*fresh.named_parameters(), *fresh.named_buffers()])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        initialization.copy_(tensor, tensors[name])
