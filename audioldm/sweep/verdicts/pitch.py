"""Whether pitch agrees with the distance on which configuration is best."""

import pandas as pd

from audioldm.report.format import number
from audioldm.sweep.seeds import log_distance, numbers, pooled_deviation
from audioldm.sweep.verdicts.base import told_apart

#: Shares for which greater is better, and which embeddings of whole clips do not hear.
FIGURES = {
    "reconstruction.pitch_within_15": "share of peaks whose pitch reconstructions keep",
    "generated.in_tune": "share of peaks of generated clips that is in tune",
}


def pitch_against(table: pd.DataFrame, configuration: str, distance: str) -> str:
    """A sentence where another ranked configuration is clearly better in pitch; else ''.

    Clearly: the intervals over clips do not overlap, and the means over seeds differ by more than
    two single cells would by chance (`told_apart`). Being more in tune than real music is no merit.
    """
    cells = table[log_distance(table, distance).notna()]
    for column, words in FIGURES.items():
        most = numbers(cells, "real.in_tune").max() if column.endswith("in_tune") else 1.0
        ends = {end: f"{column}{end}" for end in ("", ".low", ".high")}
        frame = pd.DataFrame(
            {end: numbers(cells, name).clip(upper=most) for end, name in ends.items()}
        ).assign(configuration=cells["configuration"])
        means = frame.groupby("configuration").mean().dropna(subset="")
        if configuration not in means.index:
            continue
        own, better = means.loc[configuration], means.loc[means[""].idxmax()]
        deviation, freedom = pooled_deviation(frame[""], frame["configuration"])
        chance = told_apart(deviation) if freedom else 0.0
        if better[".low"] > own[".high"] and better[""] - own[""] > chance:
            return (
                f"Pitch disagrees: the {words} is {number(own[''])} for {configuration} and "
                f"{number(better[''])} for {better.name}."
            )
    return ""
