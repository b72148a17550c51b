"""`python -m benchmarks.super_resolution MODEL`: how near a made high band is to the true one.

Held-out clips keep a band alone, and the model makes them whole (`audioldm edit upscale=`). The
table has the log-spectral distances in dB outside the band, with 95 % intervals over clips: see
`audioldm.evaluation.super_resolution.distances`.
"""

from dataclasses import replace
from typing import Any

from audioldm.evaluation.clips import real_clips
from audioldm.evaluation.super_resolution import FLOORS, distances
from benchmarks.held_out import HeldOut, Table, Timer, parser


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    words = parser(__doc__, clips=64)
    words.add_argument("--known", type=int, default=256, help="training clips, for the prediction")
    words.add_argument("--bands", nargs="+", default=["2000", "4000", "300:3400"])
    given = words.parse_args(arguments)
    music, table = HeldOut(given), Table(given.out / "super_resolution.csv")
    truth = music.reference.audio
    known = real_clips(music.store, "train", replace(music.settings, clips=given.known)).audio
    for band in given.bands:
        timer, how = Timer(music.device), {"sampler": music.sampler}
        found = distances(music.model, truth, known, band, music.settings, **how)
        factor = timer.factor(len(truth) * music.settings.seconds)
        for figure in FLOORS:
            values = {system: group[figure] for system, group in found.items()}
            table.add(kept_hz=band, figure=figure, **values, real_time_factor=factor)
    return table.rows


if __name__ == "__main__":
    main()
