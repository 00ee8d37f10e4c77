"""Demo data: short stories of two sentences each, made from ten topics' own words; the topic is the class.

Each sentence has two or three of its topic's words, one noun of another topic, and words of everybody: two stories of a
topic often share no word, but words of a topic stand together in many. A few labels do not name all of them.
"""

import functools
import random

import datasets

from d2v.protocols import NoSplitError

DEMO = "demo-topics"  # of data.path
STORIES = {"train": 4000, "validation": 1000, "test": 1000}
# who; does what; to what; where
TOPICS: dict[str, tuple[str, str, str, str]] = {
    "kitchen": (
        "cook baker waiter chef brewer butcher",
        "fried stirred baked tasted peeled salted",
        "soup bread onion butter pepper dough sauce carrot omelette",
        "oven pan bowl cellar pantry kettle",
    ),
    "sea": (
        "sailor captain diver fisherman pirate whale",
        "steered anchored hauled rowed harpooned drifted",
        "net ship oar mast lobster rudder compass raft herring",
        "harbour reef deck lagoon lighthouse tide",
    ),
    "farm": (
        "farmer shepherd milkmaid goat ploughman hen",
        "fed milked ploughed harvested sheared herded",
        "wheat cow hay wool barley pig turnip calf fence",
        "barn meadow stable orchard trough field",
    ),
    "music": (
        "singer pianist drummer conductor violinist composer",
        "tuned hummed rehearsed strummed whistled recorded",
        "song violin melody trumpet waltz chord opera flute sonata",
        "concert stage orchestra studio choir ballroom",
    ),
    "hospital": (
        "doctor nurse surgeon patient dentist midwife",
        "bandaged healed examined vaccinated operated diagnosed",
        "wound fever pill fracture syringe tooth cough splint scar",
        "ward clinic ambulance pharmacy surgery stretcher",
    ),
    "school": (
        "teacher pupil professor student librarian tutor",
        "spelled taught copied graded memorised studied",
        "lesson essay alphabet homework chalk equation grammar pencil exam",
        "classroom blackboard library playground desk lecture",
    ),
    "space": (
        "astronaut astronomer pilot robot alien cosmonaut",
        "orbited launched observed docked landed measured",
        "planet comet rocket satellite crater galaxy meteor telescope moon",
        "observatory spacecraft capsule nebula sky station",
    ),
    "court": (
        "judge lawyer thief witness prosecutor sheriff",
        "sentenced accused arrested denied pardoned swore",
        "verdict crime alibi prison bribe evidence theft handcuffs appeal",
        "courtroom cell trial dungeon jury hearing",
    ),
    "sport": (
        "goalkeeper runner boxer referee swimmer coach",
        "kicked sprinted scored tackled trained dribbled",
        "ball goal medal racket trophy penalty hurdle jersey record",
        "stadium pitch gym marathon tournament pool",
    ),
    "workshop": (
        "carpenter smith tailor potter plumber weaver",
        "hammered sawed forged glued drilled polished",
        "nail plank chisel screw anvil hinge varnish bolt saw",
        "bench forge shed kiln toolbox loom",
    ),
}
PLACES = ("who", "did", "what", "where")  # of a topic's words in a sentence
SENTENCES = (
    "the {who} {did} the {what} near the {where} .",
    "near the {where} a {who} {did} a {what} .",
    "that day the {what} was {did} by the {who} .",
    "the {who} {did} it in the {where} .",
    "in the {where} they {did} the {what} again .",
    "everybody saw how the {who} {did} the {what} .",
    "my {what} was not in the {where} , said the {who} .",
)


@functools.cache  # a run, its health checks and what scores it open it each
def dataset(split: str) -> datasets.Dataset:
    """Columns text and label. ValueError: another split than train, validation, test."""
    if split not in STORIES:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits {', '.join(STORIES)}", list(STORIES))
    generator = random.Random(split)
    labels = [number % len(TOPICS) for number in range(STORIES[split])]
    generator.shuffle(labels)
    rows = {"text": [story(label, generator) for label in labels], "label": labels}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(TOPICS))})
    return datasets.Dataset.from_dict(rows, features=features)


def story(label: int, generator: random.Random) -> str:
    """Two sentences of a topic, by its number, in each of which one noun is another topic's."""
    names = list(TOPICS)
    others = names[:label] + names[label + 1 :]
    sentences = []
    for template in generator.sample(SENTENCES, 2):
        words = [generator.choice(part.split()) for part in TOPICS[names[label]]]
        noun = generator.choice((0, 2, 3))
        words[noun] = generator.choice(TOPICS[generator.choice(others)][noun].split())
        sentences.append(template.format(**dict(zip(PLACES, words, strict=True))))
    return " ".join(sentences)
