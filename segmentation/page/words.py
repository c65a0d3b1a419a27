"""Sentences that every report has, and the order of its sections."""

from dnnlib.text import tool_version

HEADING = "Real slices, fakes, or both?"
TITLES = {
    "verdicts": "What the experiment says",
    "tables": "Tables",
    "differences": "Differences to real slices",
    "distances": "HD95 and misses",
    "viewer": "Look at the answers",
    "fakes": "Fakes beside real slices",
    "diagnostics": "Diagnostics",
    "made": "How it was made",
    "files": "Files",
    "citation": "Citation",
    "research": "For research only",
}
RESEARCH = (
    "For research only, not for diagnosis. Synthetic data are not anonymous.",
    "This is not a medical device, and nothing here may guide the care of a patient. Synthetic slices can show anatomy "
    "and disease that do not exist, lack rare findings, and carry over the biases of their training data. A GAN can "
    "reproduce slices of its training patients, and nothing here proves that it did not: treat fakes with the care, "
    "and under the terms, of the data they were trained on. This page shows slices and names of patients, so the same "
    "holds for it.",
)
_CITATION = (
    "Son, Eo, Jun, Shin, Hwang: Joint Generation of Multi-contrast Magnetic Resonance Images and Segmentation Map "
    "Using StyleGAN2-based Generative Network. Proceedings of the ISMRM, 2022, abstract 0102.",
    "The StyleGAN2-MR authors: StyleGAN2-MR, version {version}. Software, Apache-2.0. CITATION.cff holds both for "
    "reference managers.",
)
ABOUT = {
    "verdicts": "A claim is shown, or contradicted, if chance alone would bring about such a difference with a "
    "probability of less than 5 %; Holm's correction covers all claims of a table together. Differences are in units "
    "of Dice. Intervals cover the chance of patients and of trainings. Smallest detectable: the difference that would "
    "have been found in four of five such experiments. Not shown does not mean equal.",
    "no_distances": "Where the slices lie in their volumes is not known, so there are no distances.",
    "no_files": "results.csv and results.json are too large for this page, and lie in its folder.",
    "files": "results.csv has one row for each arm, replicate, examination and target. The folder of this page "
    "also has report.md and every figure as PNG and SVG.",
}
NOT_RUN = {"table1": "Table 1 was not run.", "table2": "Table 2 was not run."}


def citation() -> tuple[str, ...]:
    """How to cite the paper and the software."""
    return tuple(sentence.format(version=tool_version()) for sentence in _CITATION)
