"""Classes by their names alone: a sample takes the class whose name lies nearest where a model aligns modalities.

No label is learned from; those of the samples only say what was right.
"""

import numpy as np

from d2v.evaluation.class_names import class_names
from d2v.evaluation.embedding import projected
from d2v.evaluation.features import pooled_features, readable_vectors
from d2v.evaluation.load_encoder import open_alone, projection_of
from d2v.evaluation.queries import readers
from d2v.evaluation.report import Finding, Subject
from d2v.evaluation.retrieval import class_vectors, zero_shot
from d2v.reading import Reader

NEEDS = ("labels", "names")


def report(subject: Subject) -> Finding:
    """Accuracy on the test split, or on train without one, beside chance and the largest class."""
    model, words = subject.names("zero_shot")
    split, settings, device = subject.shown_split(), subject.config, subject.device
    known = _names(subject)
    names = list(known.values())
    opened, module = open_alone(subject.name, words, {}, {}), readers((words,))[words]
    model.to(device)

    def embed(texts: list[str]) -> np.ndarray:
        samples = module.queries(texts, opened.data, opened.frontend, opened.folder)
        return readable_vectors(Reader(), model, samples, settings.batch_size, device, indices=np.arange(len(texts)))[1]

    # by the encoder that is evaluated, which may read another size
    layers = pooled_features(
        subject.encoder, split.samples, settings.batch_size, device, indices=split.indices, layer="last"
    )
    projection = projection_of(model, subject.modality)
    assert projection is not None  # `names` asked for it
    vectors = projected(projection, layers["last"], settings.batch_size, device)
    labels = np.searchsorted(np.array(list(known)), split.labels)  # a class of which nothing can be read has no name
    scored = zero_shot(vectors, class_vectors(embed, names, settings.templates), labels, names)
    by_share = sorted(scored.by_class, key=scored.by_class.__getitem__)
    least, most = by_share[0], by_share[-1]
    line = (
        f"zero-shot, {words} for {subject.modality}: {100 * scored.accuracy:.1f} % of {len(split.labels)} samples by "
        f"the names of {len(names)} classes (chance {100 * scored.chance:.1f}, the largest class "
        f"{100 * scored.largest:.1f}); {least} {100 * scored.by_class[least]:.0f} to {most} "
        f"{100 * scored.by_class[most]:.0f}"
    )
    numbers = {
        "accuracy": 100 * scored.accuracy,
        "chance": 100 * scored.chance,
        "largest_class": 100 * scored.largest,
        "by_class": {name: 100 * share for name, share in scored.by_class.items()},
        "templates": list(settings.templates),
    }
    return Finding([line], {next(iter(subject.encoders)): numbers})


def _names(subject: Subject) -> dict[int, str]:
    """Of the classes, by their numbers in order: what their samples are called."""
    known: dict[int, str] = {}
    for split in (subject.train, subject.shown_split()):
        found = class_names(split.samples, subject.config.label)
        for index, number in zip(split.indices, split.labels, strict=True):
            known[int(number)] = str(found[index])
    return dict(sorted(known.items()))
