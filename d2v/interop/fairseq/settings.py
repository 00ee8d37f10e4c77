"""Settings that fairseq's data2vec models have in common, as ours."""

import ast
from typing import Any


def targets(cfg: dict, layers: str) -> dict[str, Any]:
    """The objective's settings, in the reference's order of norms: batch, instance, group, layer.

    For the average: layer, instance.
    """
    names = [name for name in ("batch", "instance", "group", "layer") if cfg.get(f"{name}_norm_target_layer", False)]
    scale = cfg.get("loss_scale")
    if scale is not None and scale > 0 and scale != 1:
        raise ValueError(f"cfg.model.loss_scale is {scale}; it may be null (divide by sqrt of the width) or 1")
    return {
        "top_k": cfg["average_top_k_layers"],
        "layers": layers,
        "layer_norms": names,
        "final_norms": [name for name in ("layer", "instance") if cfg.get(f"{name}_norm_targets", False)],
        "loss_beta": float(cfg.get("loss_beta", 0.0)),
        "loss_scale": "sum" if scale == 1 else "sqrt",
        "ema_decay": cfg["ema_decay"],
        "ema_end_decay": cfg["ema_end_decay"],
        "ema_anneal_steps": int(cfg["ema_anneal_end_step"]),
    }


def targets_of_2(config: Any) -> dict[str, Any]:
    """The same of data2vec 2.0. ValueError: targets of single layers, or a loss at visible tokens, too."""
    if config.targets != "mean" or config.visible_weight:
        raise ValueError(
            f"objective.targets is {config.targets} and objective.visible_weight {config.visible_weight}; "
            "fairseq's data2vec 2.0 has the mean and 0"
        )
    return targets_of(config)


def targets_of(config: Any) -> dict[str, Any]:
    """The inverse of `targets`. ValueError: norms or a scale that the reference does not have."""
    settings = {
        f"{name}_norm_target_layer": name in config.layer_norms for name in ("batch", "instance", "group", "layer")
    }
    settings |= {f"{name}_norm_targets": name in config.final_norms for name in ("layer", "instance")}
    scales = {"sqrt": None, "sum": 1.0}
    if config.loss_scale not in scales:
        raise ValueError(f"objective.loss_scale is {config.loss_scale!r}; fairseq's data2vec has {', '.join(scales)}")
    settings |= {
        "average_top_k_layers": config.top_k,
        "loss_beta": config.loss_beta,
        "loss_scale": scales[config.loss_scale],
    }
    settings |= {
        "ema_decay": config.ema_decay,
        "ema_end_decay": config.ema_end_decay,
        "ema_anneal_end_step": config.ema_anneal_steps,
    }
    again = targets(settings, config.layers)
    for name in ("layer_norms", "final_norms"):
        if again[name] != list(getattr(config, name)):
            raise ValueError(
                f"objective.{name} is {list(getattr(config, name))}; "
                f"fairseq's data2vec knows only the order {again[name]}"
            )
    return settings


def read_task(objective: Any, task: Any) -> None:
    """The sample rate of the reference's task becomes that of both sides' frontends of waveforms."""
    rate = task.get("sample_rate") if isinstance(task, dict) else None
    for encoder in {id(encoder): encoder for encoder in objective.encoders}.values():
        for name, frontend in encoder.frontends.items():
            if rate and "sample_rate" in vars(frontend.config):
                frontend.config.sample_rate = encoder.config.frontends[name]["sample_rate"] = int(rate)


def task_of(frontend: Any) -> dict[str, Any]:
    """The inverse of `read_task`, of a frontend's config."""
    return {"sample_rate": frontend.sample_rate} if "sample_rate" in vars(frontend) else {}


def conv_layers(text: str, name: str) -> tuple[int, list[int], list[int]]:
    """Width, kernels and strides of a convolutional stack.

    ValueError: it is no such list, or its widths differ; `name` is the setting.
    """
    layers = parsed(text, name)
    dims = {width for width, _, _ in layers}
    if len(dims) != 1:
        raise ValueError(f"{name} {text} has layers of different widths {sorted(dims)}")
    kernels = [kernel for _, kernel, _ in layers]
    strides = [stride for _, _, stride in layers]
    return dims.pop(), kernels, strides


def spec_of(config: Any) -> str:
    """The inverse of `conv_layers`. ValueError: the frontend reads a spectrogram."""
    if config.kind != "waveform":
        raise ValueError(f"frontend kind is {config.kind!r}; fairseq's data2vec reads the waveform")
    pairs = zip(config.conv_kernels, config.conv_strides, strict=True)
    return str([(config.conv_dim, kernel, stride) for kernel, stride in pairs])


def parsed(text: str, name: str = "conv_feature_layers") -> list[tuple[int, int, int]]:
    """[(width, kernel, stride)] from the reference's Python expression, e.g. "[(512,10,5)] + [(512,3,2)] * 4", without
    evaluating it."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            left, right = value(node.left), value(node.right)
            return left + right if isinstance(node.op, ast.Add) else left * right
        if isinstance(node, ast.List | ast.Tuple):
            items = [value(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise TypeError

    try:
        layers = value(ast.parse(text, mode="eval"))
    except (SyntaxError, TypeError):  # of Python's own operators and parser too
        layers = None
    if not isinstance(layers, list) or not all(_is_layer(layer) for layer in layers):
        raise ValueError(f"{name} {text!r} is no list of (width, kernel, stride)")
    return layers


def _is_layer(layer: Any) -> bool:
    """Whether this is (width, kernel, stride)."""
    return isinstance(layer, tuple) and len(layer) == 3 and all(type(number) is int for number in layer)
