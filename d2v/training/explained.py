"""What each number of a run means, a sentence each for a newcomer; written once, for the page and the demo's screen."""

EXPLAINED = {
    "chance": "what guessing gives: 100 divided by the number of classes",
    "raw input": "the input without a network, averaged or counted: what is won here needs no encoder",
    "random init": "the encoder untrained; above chance, as even random weights keep like inputs alike",
    "pretrained": "the same encoder after training without a single label",
    "k-NN": "a sample takes the class of its nearest neighbours by features; nothing is fitted",
    "probe": "a linear classifier fitted on frozen features; finds what k-NN overlooks",
    "verdict": "healthy: features kept their variety, and k-NN, if there are labels, did not fall",
    "rank": "effective rank: how many directions features use; near 1 all samples look alike to the encoder",
    "std": "spread of normalised features; 1 divided by the root of their width is even, near 0 is collapse",
    "loss": "what training lowers; it compares runs of one method and data only",
    "target_std": "spread of what the student is to predict; near 0 the teacher says the same of everything",
    "prediction_std": "spread of what the student predicts; near 0 it has given up",
    "hidden_share": "share of the tokens that the student had to predict",
    "trunk_norm": "length of a part's gradient in the trunk, times its weight: how hard it pulls beside the others",
    "grad_norm": "length of the gradient before clipping; a sudden rise goes before a run that diverges",
    "accuracy": "share of the samples whose class is right",
    "top5": "share of the samples whose class is among the five that the model finds likeliest",
    "f1": "of found and missed members of a class; the mean over classes where there are more than two",
    "matthews": "correlation of predicted and true classes: 0 is guessing, 1 is all right",
    "pearson": "correlation of predicted and true numbers: 1 is all right",
    "spearman": "correlation of the ranks of predicted and true numbers: 1 is all in order",
    "wer": "words that are wrong, missing or too many, as a share of those that were said; lower is better",
    "cer": "letters that are wrong, missing or too many, as a share of those that were said; lower is better",
}
SIDES = {
    "student": "the network that is trained",
    "teacher": "the moving average of the student",
    "local": "what enters the student's trunk",
}


def explain(name: str) -> str:
    """The sentence of a metric such as student_knn, loss or accuracy; "" where there is none."""
    name = name.rpartition("/")[2]  # of a joint run: its part is before it
    side, _, what = name.partition("_")
    if side in SIDES and what:
        of = "k-NN" if what == "knn" else what
        return f"{SIDES[side]}: {EXPLAINED[of]}" if of in EXPLAINED else SIDES[side]
    return EXPLAINED.get(name, "")
