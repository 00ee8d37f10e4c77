"""ABX of units within recordings, such as phones: of one speaker and across speakers, in the same context.

A whole recording is read, and each unit has the tokens whose middle lies within its times. Source: Schatz et al.,
Evaluating speech features with the minimal-pair ABX task (Interspeech 2013); limits and order of means as in the
ZeroSpeech 2021 challenge (arXiv 2011.11588).

n units, T tokens of a recording, D width.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from d2v.evaluation.embedding import by_room
from d2v.evaluation.features import frozen, layer_tokens
from d2v.evaluation.items import Unit, places_of
from d2v.evaluation.report import Finding, Subject
from d2v.evaluation.reports.abx import distances, share_wrong
from d2v.reading import named, readable_views
from d2v.types import View

EACH = 10  # units of a phone by a speaker in a context, drawn
MOST_ACROSS = 5  # speakers of X, drawn for each two phones of a speaker
OVERLAP = 0.25  # of the windows of a recording that is not read at once
NEEDS = ("tokens", "items", "token_seconds")


def report(subject: Subject) -> Finding:
    """Percent of wrong answers for each encoder, 50 being chance: all three of one speaker, and X of another one.

    ValueError: no recording of the units is there, or no two phones of one speaker and context.
    """
    units, samples = subject.items("abx_items"), subject.train.samples
    ids = [samples.ids[index] for index in subject.train.indices]
    items, files = f"evaluate.items {subject.config.items}", {unit.file for unit in units}
    try:
        places = places_of(files, ids)
    except ValueError as error:
        raise ValueError(f"{items}: {error}") from None
    drawn = chosen([unit for unit in units if unit.file in places], np.random.default_rng(subject.config.seed))
    lines = []
    if missing := sorted(files - places.keys()):
        lines.append(
            f"{items}: {len(missing)} of {len(files)} recordings are not in the data: {', '.join(missing[:3])}"
        )
    numbers = {}
    for name, encoder in subject.encoders.items():
        found, lost = cut_out(subject, encoder, drawn, {file: subject.train.indices[at] for file, at in places.items()})
        errors = item_errors(found, np.random.default_rng(subject.config.seed))
        if not errors:
            raise ValueError(f"{items}: no two phones of one speaker and context, one of them said twice, have tokens")
        numbers[name] = {kind: 100 * error for kind, error in errors.items()}
        shown = ", ".join(f"{error:.1f} {kind} speakers" for kind, error in numbers[name].items())
        lines.append(f"ABX error of {name}: {shown} ({len(found)} units{lost}; chance 50)")
    return Finding(lines, numbers)


def chosen(units: list[Unit], generator: np.random.Generator) -> list[Unit]:
    """At most EACH of a phone by a speaker in a context, and none with neither another phone nor another speaker."""
    cells: dict[tuple, list[Unit]] = defaultdict(list)
    phones: dict[tuple, set[str]] = defaultdict(set)
    speakers: dict[tuple, set[str]] = defaultdict(set)
    for unit in units:
        cells[unit.context, unit.speaker, unit.phone].append(unit)
        phones[unit.context, unit.speaker].add(unit.phone)
        speakers[unit.context, unit.phone].add(unit.speaker)
    drawn = []
    for (context, speaker, phone), some in cells.items():
        if len(phones[context, speaker]) > 1 or len(speakers[context, phone]) > 1:
            drawn += [some[place] for place in np.sort(generator.permutation(len(some))[:EACH])]
    return drawn


def cut_out(subject: Subject, encoder, units: list[Unit], places: dict) -> tuple[list[tuple[Unit, Tensor]], str]:
    """The units that have tokens of their own, and these at length 1, (their T, D); and what is said of the others."""
    of_recording: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        of_recording[int(places[unit.file])].append(unit)
    rate, found, unreadable = 1 / subject.token_seconds("abx_items"), [], {}
    for index, tokens in whole_tokens(subject, encoder, np.array(sorted(of_recording), dtype=np.int64), unreadable):
        for unit in of_recording[index]:
            first, last = math.ceil(unit.onset * rate - 0.5), math.floor(unit.offset * rate - 0.5)
            last = min(last, len(tokens) - 1)  # the end of a recording may be too short for a token
            if 0 <= first <= last:
                found.append((unit, tokens[first : last + 1].clone()))
    lost = len(units) - len(found)
    said = f"; {lost} without tokens of their own" if lost else ""
    return found, said + (f"; unreadable: {named(unreadable)}" if unreadable else "")


def whole_tokens(
    subject: Subject, encoder, indices: np.ndarray, unreadable: dict[str, str]
) -> Iterator[tuple[int, Tensor]]:
    """The number of each recording and its tokens at length 1, (T, D); long ones are read in windows."""
    samples: Any = subject.train.samples
    size = subject.config.batch_size

    def unit_tokens(view: View) -> Tensor:
        x = layer_tokens(encoder, view.to(subject.device), [subject.layer], "evaluate.layer")[0][subject.layer]
        return F.normalize(x.float(), dim=-1).cpu()

    is_cut = np.zeros(len(indices), dtype=bool) if samples.cut is None else samples.cut[indices]
    whole = indices[~is_cut]
    with frozen(encoder), tqdm(total=len(indices), desc="reading", unit="recording", disable=None) as bar:
        lengths = None if samples.lengths is None else samples.lengths[whole]
        batches = by_room(lengths, size, np.arange(len(whole)))
        for places, view in readable_views(samples, whole, batches, unreadable.__setitem__):
            tokens = unit_tokens(view)
            real = torch.ones(tokens.shape[:2], dtype=torch.bool) if view.padding is None else ~view.padding
            for row, place in enumerate(places):
                yield int(whole[place]), tokens[row][real[row]]
            bar.update(len(places))
        for index in indices[is_cut].tolist():
            try:
                parts = [unit_tokens(view)[counted] for view, counted in samples.windows(index, OVERLAP, size)]
            except ValueError as error:
                unreadable[samples.ids[index]] = str(error)
                continue
            yield index, torch.cat(parts)
            bar.update()


def item_errors(units: list[tuple[Unit, Tensor]], generator: np.random.Generator) -> dict[str, float]:
    """Share of wrong answers "within" and "across" speakers; a kind that no triple belongs to is left out.

    The mean over contexts and speakers of X, then over speakers of A and B, then over pairs of phones.
    """
    of_context: dict[tuple, list[tuple[Unit, Tensor]]] = defaultdict(list)
    for unit, tokens in units:
        of_context[unit.context].append((unit, tokens))
    shares: dict[str, dict[tuple, list[float]]] = {"within": defaultdict(list), "across": defaultdict(list)}
    for some in tqdm(of_context.values(), desc="comparing", unit="context", disable=None):
        for kind, key, share in triples([unit for unit, _ in some], distances([x for _, x in some]), generator):
            shares[kind][key].append(share)
    errors = {}
    for kind, by_speaker in shares.items():
        of_phones = defaultdict(list)
        for (first, second, _), found in by_speaker.items():
            of_phones[first, second].append(np.mean(found))
        if of_phones:
            errors[kind] = float(np.mean([np.mean(found) for found in of_phones.values()]))
    return errors


def triples(
    units: list[Unit], distance: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[str, tuple[str, str, str], float]]:
    """Of units in one context: the kind, both phones and the speaker of A and B, and the share of wrong answers."""
    cells: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for number, unit in enumerate(units):
        cells[unit.phone].setdefault(unit.speaker, []).append(number)
    for first, second in permutations(cells, 2):
        for speaker in sorted(cells[first].keys() & cells[second].keys()):
            a, b, key = cells[first][speaker], cells[second][speaker], (first, second, speaker)
            if len(a) > 1:
                yield "within", key, share_wrong(distance, a, b, a)
            others = [other for other in sorted(cells[first]) if other != speaker]
            for place in generator.permutation(len(others))[:MOST_ACROSS]:
                yield "across", key, share_wrong(distance, a, b, cells[first][others[place]])
