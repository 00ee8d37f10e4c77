"""Where in the network the classes are: k-NN and linear probe of every layer."""

from d2v.evaluation.figures import Curve, lines_figure, save_figure
from d2v.evaluation.report import Finding, Subject
from d2v.evaluation.scoring import evaluate_features

NEEDS = ("labels",)


def report(subject: Subject) -> Finding:
    """A curve for each encoder and score, from the local features to the last block."""
    near = subject.pooled(subject.train, "all")
    far = {} if subject.test is None else subject.pooled(subject.test, "all")
    settings = (subject.train, subject.test, subject.config, subject.device)
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    for name, layers in near.items():
        numbers[name] = {}
        for layer, x in layers.items():
            if layer != "last":  # the last block's end, through a norm if there is one
                numbers[name][layer] = evaluate_features(x, far.get(name, {}).get(layer), *settings)
    curves, lines = {}, []
    for name, layers in numbers.items():
        for score in next(iter(layers.values())):
            values = [scores[score] for scores in layers.values()]
            curves[f"{name}: {score}"] = Curve(list(range(len(values))), values)
            shown = [f"{layer} {value:.1f}" for layer, value in zip(layers, values, strict=True)]
            lines.append(f"{score} of {name}: {', '.join(shown)}")
    figure = lines_figure(
        curves, title=f"Layers of {subject.name}", xlabel="block (0: local features)", ylabel="accuracy (%)"
    )
    save_figure(figure, subject.picture("layer_curve"))
    return Finding(lines, numbers)
