"""The five figures of Pesme, Pillaud-Vivien, Flammarion 2021 (arXiv 2106.09524), one study each, with bands over seeds for single runs."""
