"""Pictures of what an encoder whose tokens lie in a grid makes of a few samples, for the page of a run."""

import io

from d2v.evaluation.reports import attention, patches
from d2v.models.encoder import D2vModel
from d2v.training.health import HealthCheck
from d2v.training.page import Map

SAMPLES = 4
OF_PATCHES = "Places that the encoder takes for alike have one colour: a thing stands out of its ground in one piece."
OF_ATTENTION = "Where the last block looks; yellow is most. Heads that look at different things have divided the work."


def token_maps(encoder: D2vModel, modality: str, health: HealthCheck, name: str) -> list[Map]:
    """Main directions of the tokens, and attention, of samples of the health check; none without grid or blocks."""
    frontend = encoder.frontend(modality)
    if "grid" not in vars(frontend) or not len(encoder.trunk.blocks):
        return []
    read = health.read
    chosen = read[[place * len(read) // SAMPLES for place in range(SAMPLES)]] if len(read) > SAMPLES else read
    view = health.samples.view(chosen).to(next(encoder.parameters()).device)
    drawn = [
        ("Patches", OF_PATCHES, patches.draw({name: encoder}, view, frontend.grid, name)[0]),
        ("Attention", OF_ATTENTION, attention.draw(encoder, view, frontend.grid, name)[0]),
    ]
    maps = []
    for title, hint, figure in drawn:
        file = io.BytesIO()
        figure.savefig(file, dpi=90, format="png")
        maps.append(Map(title, hint, file.getvalue()))
    return maps
